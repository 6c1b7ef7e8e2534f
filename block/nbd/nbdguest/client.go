// SPDX-License-Identifier: Apache-2.0

package nbdguest

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"sync"
)

// Client is a connection in transmission. All methods may be called
// concurrently. Two goroutines serve it, one that sends and one that
// receives; Close and Disconnect wait for them.
type Client struct {
	conn     net.Conn
	info     Info
	contexts map[uint32]string

	wake  chan struct{} // capacity 1: the queue is no longer empty
	stop  chan struct{} // closed by the reader: nothing will be received any more
	quiet chan struct{} // closed by the writer: nothing will be sent any more
	ended chan struct{} // closed by the reader: every request has its outcome

	mu struct {
		sync.Mutex
		queue    []*Request
		inFlight map[uint64]*Request // by cookie: submitted, outcome not final
		cookie   uint64
		parting  bool  // a disconnect request is queued or sent
		cause    error // why the connection ends; the first cause counts
		over     bool  // the reader has given every request its outcome
	}
}

// transmit starts a client on the connection of a handshake that ended with
// the given export.
func (h *Handshake) transmit(export string, info Info) *Client {
	c := &Client{
		conn:  h.conn,
		info:  info,
		wake:  make(chan struct{}, 1),
		stop:  make(chan struct{}),
		quiet: make(chan struct{}),
		ended: make(chan struct{}),
	}
	if h.metaExport == export {
		c.contexts = h.contexts
		c.info.Contexts = slices.Sorted(maps.Values(h.contexts))
	}
	c.mu.inFlight = map[uint64]*Request{}
	go c.write()
	go c.read()
	return c
}

// Info is what the server told about the export.
func (c *Client) Info() Info { return c.info }

// Size is the size of the export in bytes.
func (c *Client) Size() uint64 { return c.info.Size }

// Flags are the transmission flags of the export.
func (c *Client) Flags() TransmissionFlags { return c.info.Flags }

// Ended is closed when the connection has ended, for whatever reason.
func (c *Client) Ended() <-chan struct{} { return c.ended }

// Submit queues a request and returns at once; requests leave in the order of
// submission.
func (c *Client) Submit(command Command) *Request {
	r := &Request{command: command, done: make(chan struct{}), names: c.contexts}
	if err := r.prepare(); err != nil {
		r.err = err
		close(r.done)
		return r
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mu.over || c.mu.parting {
		r.err = c.whyLocked()
		close(r.done)
		return r
	}
	c.enqueueLocked(r)
	c.mu.inFlight[r.cookie] = r
	return r
}

// prepare makes length and data agree.
func (r *Request) prepare() error {
	if r.command.Type == cmdDisconnect {
		return errors.New("a disconnect request has no reply; use Disconnect")
	}
	carriesData := r.command.Type == CmdRead || r.command.Type == CmdWrite
	if !carriesData {
		r.command.Data = nil
		return nil
	}
	have := uint64(len(r.command.Data))
	switch {
	case have > 1<<32-1:
		return fmt.Errorf("NBD %s of %d bytes: the length must fit 32 bits", r.command.Type, have)
	case r.command.Length == 0:
		r.command.Length = uint32(have)
	case have == 0 && r.command.Type == CmdRead:
		r.command.Data = make([]byte, r.command.Length)
	case have != uint64(r.command.Length):
		return fmt.Errorf("NBD %s of %d bytes with a buffer of %d", r.command.Type, r.command.Length, have)
	}
	return nil
}

// enqueueLocked never blocks: the channel only says that there is something.
func (c *Client) enqueueLocked(r *Request) {
	c.mu.cookie++
	r.cookie = c.mu.cookie
	c.mu.queue = append(c.mu.queue, r)
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// Disconnect sends NBD_CMD_DISC behind everything submitted, and waits until
// the server has answered what is in flight and closed the connection. If ctx
// ends before, the connection is dropped.
func (c *Client) Disconnect(ctx context.Context) error {
	c.mu.Lock()
	if !c.mu.parting && !c.mu.over {
		c.mu.parting = true
		c.enqueueLocked(&Request{command: Command{Type: cmdDisconnect}})
	}
	c.mu.Unlock()
	select {
	case <-c.ended:
	case <-ctx.Done():
		c.Close()
		return fmt.Errorf("NBD server did not end the connection: %w", context.Cause(ctx))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if errors.Is(c.mu.cause, ErrClosed) {
		return nil
	}
	return c.mu.cause
}

// Close drops the connection. Requests in flight end with ErrClosed.
func (c *Client) Close() {
	c.fail(ErrClosed)
	<-c.ended
}

// fail records why the connection ends and makes both goroutines notice.
func (c *Client) fail(cause error) {
	c.mu.Lock()
	if c.mu.cause == nil {
		c.mu.cause = cause
	}
	c.mu.Unlock()
	c.conn.Close()
}

func (c *Client) whyLocked() error {
	if c.mu.cause != nil {
		return c.mu.cause
	}
	return ErrClosed
}

// write sends what is queued until the connection ends.
func (c *Client) write() {
	defer close(c.quiet)
	for {
		select {
		case <-c.wake:
		case <-c.stop:
			return
		}
		c.mu.Lock()
		batch := c.mu.queue
		c.mu.queue = nil
		c.mu.Unlock()
		for _, r := range batch {
			if err := c.send(r); err != nil {
				c.fail(fmt.Errorf("sending to the NBD server: %w", err))
				return
			}
			c.settle(r, func() { r.sent = true })
		}
	}
}

func (c *Client) send(r *Request) error {
	header := make([]byte, 0, 28)
	header = binary.BigEndian.AppendUint32(header, magicRequest)
	header = binary.BigEndian.AppendUint16(header, uint16(r.command.Flags))
	header = binary.BigEndian.AppendUint16(header, uint16(r.command.Type))
	header = binary.BigEndian.AppendUint64(header, r.cookie)
	header = binary.BigEndian.AppendUint64(header, r.command.Offset)
	header = binary.BigEndian.AppendUint32(header, r.command.Length)
	message := net.Buffers{header}
	if r.command.Type == CmdWrite {
		message = append(message, r.command.Data)
	}
	_, err := message.WriteTo(c.conn)
	return err
}

// settle notes progress of a request and ends it when it was sent and
// answered.
func (c *Client) settle(r *Request, note func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	note()
	if r.sent && r.replied {
		delete(c.mu.inFlight, r.cookie)
		close(r.done)
	}
}

// read takes in replies until the connection ends, and then gives every
// request left its outcome. It alone does so, after the writer has stopped:
// no buffer is touched once its request is done.
func (c *Client) read() {
	defer close(c.ended)
	stream := bufio.NewReaderSize(c.conn, 64<<10)
	var err error
	for err == nil {
		err = c.readReply(stream)
	}
	c.mu.Lock()
	orderly := err == io.EOF && c.mu.parting
	unanswered := 0
	for _, r := range c.mu.inFlight {
		if !r.replied {
			unanswered++
		}
	}
	c.mu.Unlock()
	switch {
	case orderly && unanswered == 0:
		err = ErrClosed
	case err == io.EOF:
		err = fmt.Errorf("the NBD server closed the connection with %d requests unanswered: %w", unanswered, io.ErrUnexpectedEOF)
	default:
		err = fmt.Errorf("receiving from the NBD server: %w", err)
	}
	c.fail(err)
	close(c.stop)
	<-c.quiet

	c.mu.Lock()
	defer c.mu.Unlock()
	c.mu.over = true
	for cookie, r := range c.mu.inFlight {
		if !r.replied {
			r.err = c.mu.cause
		}
		delete(c.mu.inFlight, cookie)
		close(r.done)
	}
}
