// SPDX-License-Identifier: Apache-2.0

package nbd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"syscall"

	wire "github.com/blkmirror/blkmirror/block/nbd"
)

const (
	slotBits = 8
	// maxInFlight is how many requests one connection has under way; more wait.
	maxInFlight = 1 << slotBits
)

// conn is one connection in transmission. Locks are taken in the order output, input, table.
type conn struct {
	nc      net.Conn
	raw     syscall.RawConn // nil where only the connection itself knows what goes over the socket
	export  *export
	session *session

	free  chan uint8    // numbers of slots that are not in use
	wake  chan struct{} // holds a token when the queue may have something
	dead  chan struct{} // closed when the session is lost or closed
	quiet chan struct{} // closed when the writer has ended
	gone  chan struct{} // closed when the reader has, and every request has its outcome

	table struct {
		sync.Mutex
		slots  [maxInFlight]*request
		uses   uint64
		queue  []*request
		closed bool // nothing is taken any more
	}
	out output
	in  input

	answered bool // there was a reply; the reader's alone until gone
}

func newConn(s *session, nc net.Conn, e *export) *conn {
	c := &conn{nc: nc, export: e, session: s, free: make(chan uint8, maxInFlight), wake: make(chan struct{}, 1),
		dead: make(chan struct{}), quiet: make(chan struct{}), gone: make(chan struct{})}
	for i := range maxInFlight {
		c.free <- uint8(i)
	}
	if sc, ok := nc.(syscall.Conn); ok {
		c.raw, _ = sc.SyscallConn() // without it, the slower way
	}
	c.out.init(c)
	c.in.init(c)
	return c
}

// start begins to send and receive. The session ends what it begins.
func (c *conn) start() {
	go c.write()
	go c.read()
}

var errConnClosed = errors.New("the connection was closed")

// submit hands r to the connection; wait or abandon must follow if it succeeds.
func (c *conn) submit(ctx context.Context, r *request) error {
	var slot uint8
	select {
	case slot = <-c.free:
	default:
		select {
		case slot = <-c.free:
		case <-c.dead:
			r.lost = true
			return errConnClosed
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	t := &c.table
	t.Lock()
	if t.closed {
		t.Unlock()
		c.free <- slot
		r.lost = true
		return errConnClosed
	}
	t.uses++
	r.cookie = t.uses<<slotBits | uint64(slot)
	t.slots[slot] = r
	t.queue = append(t.queue, r)
	t.Unlock()
	select {
	case c.wake <- struct{}{}:
	default:
	}
	return nil
}

// wait waits for the outcome of r. If ctx ends first, r belongs to the connection or is gone: the caller has its buffers
// back and does not touch r any more. under says that the server may have got r.
func (c *conn) wait(ctx context.Context, r *request) (abandoned, under bool) {
	select {
	case <-r.done:
		return false, r.phase != queued
	case <-ctx.Done():
	}
	// With all three locks nobody is at its buffers.
	c.out.Lock()
	defer c.out.Unlock()
	c.in.Lock()
	defer c.in.Unlock()
	t := &c.table
	t.Lock()
	defer t.Unlock()
	switch {
	case r.settled:
		<-r.done // it is there
		return false, r.phase != queued
	case r.phase == queued:
		t.queue = slices.DeleteFunc(t.queue, func(other *request) bool { return other == r })
		c.freeLocked(r)
		r.recycle()
		return true, false
	}
	r.abandoned, r.detached = true, true
	c.session.disk.leftovers.add(r)
	c.out.detach(r)
	return true, true
}

// find gives the request that a reply belongs to.
func (c *conn) find(cookie uint64) (*request, error) {
	t := &c.table
	t.Lock()
	defer t.Unlock()
	r := t.slots[cookie&(maxInFlight-1)]
	if r == nil || r.cookie != cookie || r.phase == queued || r.replied {
		return nil, fmt.Errorf("a reply to no request, cookie %#x", cookie)
	}
	return r, nil
}

// replied ends a reply.
func (c *conn) replied(r *request) {
	c.answered = true
	if r.failure == nil && r.changes() && r.flags&wire.FlagFUA == 0 {
		c.session.disk.writes.Add(1) // here, so that the keeper knows when this goroutine has ended
	}
	c.table.Lock()
	defer c.table.Unlock()
	r.replied, r.err = true, r.failure
	c.settleLocked(r)
}

// settleLocked gives r its outcome when its buffers are not in use any more. Nothing here blocks: the channels have room
// for what is sent to them.
func (c *conn) settleLocked(r *request) {
	if !r.replied || r.phase == sending {
		return
	}
	c.freeLocked(r)
	r.settled = true
	if !r.abandoned {
		r.done <- struct{}{}
		return
	}
	if r.changes() {
		c.session.disk.cache.changed(r.off, r.n)
	}
	c.session.disk.leftovers.remove(r)
	r.recycle()
}

func (c *conn) freeLocked(r *request) {
	slot := uint8(r.cookie & (maxInFlight - 1))
	c.table.slots[slot] = nil
	c.free <- slot
}

// write is the writer: it sends what is queued, as much as there is at once.
func (c *conn) write() {
	defer close(c.quiet)
	for {
		select {
		case <-c.wake:
		case <-c.dead:
			return
		}
		for c.out.collect() {
			if err := c.out.send(); err != nil {
				c.session.lose(fmt.Errorf("sending: %w", err))
				return // what was being sent has its outcome when the reader has ended
			}
			c.out.sent()
		}
	}
}

// read is the reader. In the end it gives every request its outcome that has none.
func (c *conn) read() {
	defer close(c.gone)
	err := c.readReplies()
	if !c.session.parting.Load() {
		c.session.lose(err)
	}
	c.kill() // whoever loses the session may not have come to this connection yet
	<-c.quiet
	c.in.release()
	c.out.release()
	t := &c.table
	t.Lock()
	defer t.Unlock()
	t.queue = nil
	for _, r := range &t.slots {
		if r == nil {
			continue
		}
		if !r.replied {
			r.replied, r.lost, r.err = true, true, c.session.cause()
			if r.changes() && r.phase != queued {
				d := c.session.disk
				d.suspects.add(d.Size(), r.off, r.n)
			}
		}
		if r.phase == sending {
			r.phase = sent // as far as it came
		}
		c.settleLocked(r)
	}
}

// kill ends both goroutines soon.
func (c *conn) kill() {
	c.table.Lock()
	closed := c.table.closed
	c.table.closed = true
	c.table.Unlock()
	if !closed {
		close(c.dead)
		closeNow(c.nc)
	}
}

// closeNow closes a connection without a word, which a peer that is dead would not take. What could fail here was lost
// anyway.
func closeNow(nc net.Conn) {
	if encrypted, ok := nc.(*tls.Conn); ok {
		nc = encrypted.NetConn()
	}
	_ = nc.Close()
}
