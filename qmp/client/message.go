// SPDX-License-Identifier: Apache-2.0

package client

import (
	"errors"
	"time"

	"github.com/blkmirror/blkmirror/qmp"
)

// Event is something that the server announced. api.DecodeEvent turns Name
// and Data into a generated type.
type Event struct {
	Name string
	Time time.Time // by the server's clock
	Data *qmp.Object

	// Lost is the number of events that were dropped right before this one.
	Lost uint64
}

// Events returns the channel of events. It is closed when the connection
// ends. All callers share it.
func (c *Client) Events() <-chan Event { return c.events }

// Lost returns the number of events that were dropped since the last one
// that fit.
func (c *Client) Lost() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.mu.lost
}

// deliverEvent passes an event on, or counts it as lost.
func (c *Client) deliverEvent(m message) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := Event{Name: m.event, Time: m.time, Data: m.data, Lost: c.mu.lost}
	select {
	case c.events <- e:
		c.mu.lost = 0
	default:
		c.mu.lost++
	}
}

// message is what a server sends after the greeting: a reply or an event.
type message struct {
	id    any
	value any
	err   error // a *qmp.Error

	event string
	time  time.Time
	data  *qmp.Object
}

// parseMessage takes a message apart. Unknown members are left alone.
func parseMessage(value any) (message, error) {
	var m message
	o, ok := value.(*qmp.Object)
	if !ok {
		return m, errors.New("the server sent something that is not an object")
	}
	m.id, _ = o.Get("id")
	if m.value, ok = o.Get("return"); ok {
		return m, nil
	}
	if failed, ok := o.Get("error"); ok {
		var e errorBody
		if err := qmp.DecodeValue(failed, qmp.Lenient, &e); err != nil {
			return m, err
		}
		m.err = &qmp.Error{Class: qmp.ErrorClass(e.class), Desc: e.desc}
		return m, nil
	}
	var e eventBody
	if err := qmp.Decode(o, qmp.Lenient, &e); err != nil {
		return m, err
	}
	m.event, m.time, m.data = e.name, time.Unix(e.seconds, e.microseconds*1000), e.data
	return m, nil
}

type errorBody struct{ class, desc string }

func (e *errorBody) DecodeQMP(p qmp.Param) {
	m := p.Object()
	e.class = m.Required("class").Text()
	e.desc = m.Required("desc").Text()
}

type eventBody struct {
	name                  string
	seconds, microseconds int64
	data                  *qmp.Object
}

func (e *eventBody) DecodeQMP(p qmp.Param) {
	m := p.Object()
	e.name = m.Required("event").Text()
	stamp := m.Required("timestamp").Object()
	e.seconds = stamp.Required("seconds").Int(64)
	e.microseconds = stamp.Required("microseconds").Int(64)
	e.data, _ = m.Optional("data").Value().(*qmp.Object)
}
