// SPDX-License-Identifier: Apache-2.0

// Package fakedaemon is a QMP server for tests of clients: it says what a
// script wants it to say, when the script wants it.
package fakedaemon

import (
	"io"
	"net"
	"sync"

	"github.com/blkmirror/blkmirror/qmp"
)

const greeting = `{"QMP": {"version": {"qemu": {"major": 11, "minor": 1, "micro": 3}, "package": "fake"}, "capabilities": []}}` + "\r\n"

// Script answers commands, one at a time, beginning with qmp_capabilities. An
// error that is not a *qmp.Error closes the connection without an answer.
type Script func(c *Conn, command string, arguments *qmp.Object) (any, error)

// Conn is a connection from a client.
type Conn struct {
	conn  net.Conn
	later []func()

	mu sync.Mutex // held for the writing of one message
}

// Event sends an event: within a script before the reply.
func (c *Conn) Event(name, data string) {
	c.send(`{"timestamp": {"seconds": 1700000000, "microseconds": 123456}, "event": "` + name + `", "data": ` + data + `}`)
}

// Status sends the event of a job's new status.
func (c *Conn) Status(job string, statuses ...string) {
	for _, status := range statuses {
		c.Event("JOB_STATUS_CHANGE", `{"id": "`+job+`", "status": "`+status+`"}`)
	}
}

// Later runs a function after the reply of the command at hand.
func (c *Conn) Later(f func()) { c.later = append(c.later, f) }

// Close hangs up.
func (c *Conn) Close() { c.conn.Close() }

// send writes a message. The client may have gone: that is its business.
func (c *Conn) send(text string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	io.WriteString(c.conn, text+"\r\n")
}

// Serve serves one client, until it leaves or the script has had enough.
func Serve(conn net.Conn, script Script) {
	defer conn.Close()
	c := &Conn{conn: conn}
	io.WriteString(conn, greeting)
	r := qmp.NewReader(conn)
	for {
		value, err := r.Next()
		if err != nil {
			return
		}
		message := value.(*qmp.Object)
		id, _ := message.Get("id")
		name, _ := message.Get("execute")
		given, _ := message.Get("arguments")
		arguments, _ := given.(*qmp.Object)
		result, err := script(c, name.(string), arguments)
		reply := qmp.NewObject()
		switch refused := err.(type) {
		case nil:
			if result == nil {
				result = qmp.NewObject()
			}
			reply.Set("return", result)
		case *qmp.Error:
			reply.Set("error", qmp.NewObject(qmp.Member{Name: "class", Value: string(refused.Class)},
				qmp.Member{Name: "desc", Value: refused.Desc}))
		default:
			return
		}
		if id != nil {
			reply.Set("id", id)
		}
		c.send(string(qmp.Encode(reply)))
		later := c.later
		c.later = nil
		for _, f := range later {
			f()
		}
	}
}
