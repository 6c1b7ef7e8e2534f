// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

// maxMessage bounds one line that a daemon sends.
const maxMessage = 16 << 20

var (
	errMonitorClosed = errors.New("monitor closed")
	errNothingCame   = errors.New("nothing came in time")
)

// monitor is a QMP connection. One goroutine receives and sorts messages into
// replies and events; everything else is for the scenario's goroutine alone.
type monitor struct {
	name     string
	conn     net.Conn
	patience time.Duration // how long one message may take
	arrived  chan struct{} // capacity 1: a message came, or the end did
	ended    chan struct{} // closed when the receiver has ended

	mu struct {
		sync.Mutex
		order           int // messages received
		replies, events []message
		err             error // why there will be no more
	}

	greeted    bool // the greeting was taken
	negotiated bool
	ignored    []eventPattern
	drains     map[string]string // last status of each job, once drains are ignored; nil before
}

// message is a reply or an event; order counts both together.
type message struct {
	order int
	body  map[string]any
}

// eventPattern matches events by name and by a part of their data.
type eventPattern struct {
	name string
	data map[string]any
}

func (p eventPattern) matches(event map[string]any) bool {
	if event["event"] != p.name {
		return false
	}
	data := event["data"]
	return covers(p.data, data) || data == nil && len(p.data) == 0
}

func newMonitor(name string, conn net.Conn, patience time.Duration) *monitor {
	m := &monitor{name: name, conn: conn, patience: patience,
		arrived: make(chan struct{}, 1), ended: make(chan struct{})}
	go m.receive()
	return m
}

// receive runs until the connection ends or something unreadable comes.
func (m *monitor) receive() {
	defer close(m.ended)
	lines := bufio.NewScanner(m.conn)
	lines.Buffer(make([]byte, 0, 4096), maxMessage)
	var broken error
	for broken == nil && lines.Scan() {
		value, err := decodeJSON(lines.Text())
		body, isObject := value.(map[string]any)
		switch {
		case err != nil:
			broken = fmt.Errorf("unreadable message %.200q: %w", lines.Text(), err)
		case !isObject:
			broken = fmt.Errorf("message is not an object: %.200q", lines.Text())
		default:
			m.deliver(body)
		}
	}
	m.mu.Lock()
	m.mu.err = broken
	if broken == nil {
		m.mu.err = errMonitorClosed
	}
	m.mu.Unlock()
	m.announce()
}

func (m *monitor) deliver(body map[string]any) {
	m.mu.Lock()
	m.mu.order++
	received := message{m.mu.order, body}
	if _, isEvent := body["event"]; isEvent {
		m.mu.events = append(m.mu.events, received)
	} else {
		m.mu.replies = append(m.mu.replies, received)
	}
	m.mu.Unlock()
	m.announce()
}

func (m *monitor) announce() {
	select {
	case m.arrived <- struct{}{}:
	default:
	}
}

// take waits until pop succeeds. pop runs with the lock held.
func (m *monitor) take(ctx context.Context, pop func() (message, bool)) (message, error) {
	timeout := time.NewTimer(m.patience)
	defer timeout.Stop()
	for {
		m.mu.Lock()
		found, ok := pop()
		err := m.mu.err
		m.mu.Unlock()
		if ok {
			return found, nil
		}
		if err != nil {
			return message{}, err
		}
		select {
		case <-m.arrived:
		case <-timeout.C:
			return message{}, errNothingCame
		case <-ctx.Done():
			return message{}, context.Cause(ctx)
		}
	}
}

// reply waits for the next reply.
func (m *monitor) reply(ctx context.Context) (message, error) {
	found, err := m.take(ctx, func() (message, bool) {
		if len(m.mu.replies) == 0 {
			return message{}, false
		}
		first := m.mu.replies[0]
		m.mu.replies = m.mu.replies[1:]
		return first, true
	})
	if err != nil {
		err = fmt.Errorf("monitor %s, waiting for a reply: %w", m.name, err)
	}
	return found, err
}

// event waits for the next event that is not to be left out.
func (m *monitor) event(ctx context.Context) (map[string]any, error) {
	found, err := m.take(ctx, func() (message, bool) { return m.popEventLocked(1 << 62) })
	return found.body, err
}

// eventsBefore takes the events that came before another message.
func (m *monitor) eventsBefore(other message) []map[string]any {
	m.mu.Lock()
	defer m.mu.Unlock()
	var found []map[string]any
	for {
		event, ok := m.popEventLocked(other.order)
		if !ok {
			return found
		}
		found = append(found, event.body)
	}
}

// popEventLocked takes the first event that came before the given place and
// is not to be left out.
func (m *monitor) popEventLocked(before int) (message, bool) {
	for len(m.mu.events) > 0 && m.mu.events[0].order < before {
		first := m.mu.events[0]
		m.mu.events = m.mu.events[1:]
		if !m.leftOut(first.body) {
			return first, true
		}
	}
	return message{}, false
}

// leftOut tells whether the scenario asked not to see an event. Every event
// passes here once, in order.
func (m *monitor) leftOut(event map[string]any) bool {
	fromDrain := m.fromDrain(event)
	for _, pattern := range m.ignored {
		if pattern.matches(event) {
			return true
		}
	}
	return fromDrain
}

// fromDrain tells whether an event is a job that pauses because its node is
// drained, or that goes on afterwards. How often that happens is a matter of
// timing.
func (m *monitor) fromDrain(event map[string]any) bool {
	if m.drains == nil || event["event"] != "JOB_STATUS_CHANGE" {
		return false
	}
	job, _ := dig(event, "data.id").(string)
	status, _ := dig(event, "data.status").(string)
	before := m.drains[job]
	m.drains[job] = status
	switch status {
	case "standby", "paused":
		return true
	case "ready":
		return before == "standby"
	case "running":
		return before == "paused"
	}
	return false
}

// send writes one line.
func (m *monitor) send(text string) error {
	if err := m.conn.SetWriteDeadline(time.Now().Add(m.patience)); err != nil {
		return fmt.Errorf("monitor %s: %w", m.name, err)
	}
	if _, err := m.conn.Write(append([]byte(text), '\n')); err != nil {
		return fmt.Errorf("monitor %s: %w", m.name, err)
	}
	return nil
}

// command sends a command and waits for a reply.
func (m *monitor) command(ctx context.Context, name string, arguments map[string]any) (message, error) {
	text, err := json.Marshal(struct {
		Execute   string         `json:"execute"`
		Arguments map[string]any `json:"arguments,omitempty"`
	}{name, arguments})
	if err != nil {
		return message{}, err
	}
	if err := m.send(string(text)); err != nil {
		return message{}, err
	}
	return m.reply(ctx)
}

// must is command for commands that have to succeed.
func (m *monitor) must(ctx context.Context, name string, arguments map[string]any) error {
	reply, err := m.command(ctx, name, arguments)
	if err != nil {
		return err
	}
	if _, ok := reply.body["return"]; !ok {
		return fmt.Errorf("%s was refused: %s", name, renderJSON(reply.body))
	}
	return nil
}

func (m *monitor) greeting(ctx context.Context) (message, error) {
	m.greeted = true
	return m.reply(ctx)
}

// negotiate takes the greeting, if nobody has, and leaves negotiation mode.
func (m *monitor) negotiate(ctx context.Context) error {
	if !m.greeted {
		if _, err := m.greeting(ctx); err != nil {
			return err
		}
	}
	if err := m.must(ctx, "qmp_capabilities", nil); err != nil {
		return err
	}
	m.negotiated = true
	return nil
}

func (m *monitor) close() {
	m.conn.Close()
	<-m.ended
}
