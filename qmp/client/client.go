// SPDX-License-Identifier: Apache-2.0

package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/blkmirror/blkmirror/qmp"
	"github.com/blkmirror/blkmirror/qmp/api"
)

// DefaultEventBuffer is how many events wait for a reader.
const DefaultEventBuffer = 256

// ErrClosed is the error of commands on a closed client.
var ErrClosed = errors.New("QMP connection is closed")

// Options are options of a client.
type Options struct {
	// EventBuffer is how many events wait for a reader of Events before they
	// are dropped; 0 is DefaultEventBuffer.
	EventBuffer int
}

// Client is a negotiated connection.
type Client struct {
	conn    net.Conn
	version api.VersionInfo
	events  chan Event
	readEnd chan struct{} // closed when the reading goroutine has ended

	// writing has room for whoever writes a command. It is a channel, so that
	// waiting for it can be given up.
	writing chan struct{}

	mu struct {
		sync.Mutex
		lastID  int64
		pending map[int64]chan<- reply
		failed  error // why nothing can be executed any more
		lost    uint64
	}
}

// reply is the answer to one command.
type reply struct {
	value any
	err   error
}

// Dial connects to a server at a network address, such as "unix" and a path
// or "tcp" and host:port, and negotiates. The context counts only until then.
func Dial(ctx context.Context, network, address string, opts Options) (*Client, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return New(ctx, conn, opts)
}

// New negotiates on a connection, which belongs to the client from then on,
// even if that fails. The context counts only until then.
func New(ctx context.Context, conn net.Conn, opts Options) (*Client, error) {
	if opts.EventBuffer == 0 {
		opts.EventBuffer = DefaultEventBuffer
	}
	c := &Client{
		conn:    conn,
		events:  make(chan Event, opts.EventBuffer),
		readEnd: make(chan struct{}),
		writing: make(chan struct{}, 1),
	}
	c.mu.pending = map[int64]chan<- reply{}
	r := qmp.NewReader(conn)
	if err := c.negotiate(ctx, r); err != nil {
		conn.Close()
		return nil, fmt.Errorf("QMP negotiation: %w", err)
	}
	go c.read(r)
	return c, nil
}

// negotiate reads the greeting and answers it.
func (c *Client) negotiate(ctx context.Context, r *qmp.Reader) error {
	stop := context.AfterFunc(ctx, func() { c.conn.SetDeadline(time.Unix(1, 0)) })
	err := c.exchange(r)
	if !stop() && ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

func (c *Client) exchange(r *qmp.Reader) error {
	value, err := r.Next()
	if err != nil {
		return noEOF(err)
	}
	var greeting hello
	if err := qmp.DecodeValue(value, qmp.Lenient, &greeting); err != nil {
		return err
	}
	c.version = greeting.version
	if _, err := io.WriteString(c.conn, `{"execute": "qmp_capabilities"}`+"\n"); err != nil {
		return err
	}
	if value, err = r.Next(); err != nil {
		return noEOF(err)
	}
	m, err := parseMessage(value)
	if err != nil {
		return err
	}
	return m.err
}

// hello is the greeting.
type hello struct{ version api.VersionInfo }

func (h *hello) DecodeQMP(p qmp.Param) {
	m := p.Object()
	q := m.Required("QMP")
	inner := q.Object()
	h.version.DecodeQMP(inner.Required("version"))
}

// Version returns what the server said in its greeting.
func (c *Client) Version() api.VersionInfo { return c.version }

// Close ends the connection. Commands that wait for a reply fail.
func (c *Client) Close() error {
	c.fail(ErrClosed)
	<-c.readEnd
	return nil
}

// fail ends the connection for a reason; the first one counts.
func (c *Client) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mu.failed != nil {
		return
	}
	c.mu.failed = err
	for id, waiting := range c.mu.pending {
		waiting <- reply{err: err} // has room: one reply per command
		delete(c.mu.pending, id)
	}
	c.conn.Close() // does not block: nothing lingers
}

// read takes messages until the connection ends.
func (c *Client) read(r *qmp.Reader) {
	defer close(c.readEnd)
	defer close(c.events)
	for {
		value, err := r.Next()
		if err != nil {
			c.fail(fmt.Errorf("QMP connection: %w", noEOF(err)))
			return
		}
		m, err := parseMessage(value)
		if err != nil {
			c.fail(fmt.Errorf("QMP connection: %w", err))
			return
		}
		if m.event != "" {
			c.deliverEvent(m)
		} else if err := c.deliverReply(m); err != nil {
			c.fail(fmt.Errorf("QMP connection: %w", err))
			return
		}
	}
}

// deliverReply hands a reply to the command that waits for it. Nobody does
// if its context has ended.
func (c *Client) deliverReply(m message) error {
	id, ok := m.id.(int64)
	c.mu.Lock()
	defer c.mu.Unlock()
	if !ok || id < 1 || id > c.mu.lastID {
		if m.err != nil {
			return m.err // the server could not make sense of a command
		}
		return fmt.Errorf("reply with unknown id %s", qmp.Encode(m.id))
	}
	if waiting, ok := c.mu.pending[id]; ok {
		delete(c.mu.pending, id)
		waiting <- reply{m.value, m.err} // has room: one reply per command
	}
	return nil
}

// noEOF says what the end of the stream means here.
func noEOF(err error) error {
	if err == io.EOF {
		return errors.New("the server closed it")
	}
	return err
}
