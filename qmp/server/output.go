// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"io"
	"net"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// highWater is how much may wait for a client before its requests are no
// longer read.
const highWater = 64 << 10

// keptQueue is the largest buffer that is kept for the next messages.
const keptQueue = 64 << 10

// output is the queue of what is to be written to a client. One goroutine at
// a time writes: that of the session after a reply, or that for events.
type output struct {
	conn io.ReadWriteCloser
	max  int

	wake chan struct{} // has room for one: there is something to write
	stop chan struct{} // closed when the events' goroutine is to end

	mu struct {
		sync.Mutex
		queued  []byte
		spare   []byte // for the next queue
		unsent  int    // bytes that are being written
		writing bool
		events  bool // negotiated: events are wanted
		closed  bool // nothing can be written any more
		ended   bool // nothing is to be read any more, either
	}
	room sync.Cond // something was written, or closed
}

func (o *output) init(conn io.ReadWriteCloser, max int) {
	o.conn, o.max = conn, max
	o.wake = make(chan struct{}, 1)
	o.stop = make(chan struct{})
	o.room.L = &o.mu.Mutex
}

// queue adds a message. With events, events may follow it.
func (o *output) queue(text []byte, events bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.mu.closed {
		return
	}
	o.mu.events = events
	o.mu.queued = append(o.mu.queued, text...)
}

// queueEvent adds an event. It returns false if the client lets too much wait,
// and ends the connection then.
func (o *output) queueEvent(text []byte) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.mu.closed || !o.mu.events {
		return true
	}
	if len(o.mu.queued)+o.mu.unsent+len(text) > o.max {
		o.endLocked()
		return false
	}
	o.mu.queued = append(o.mu.queued, text...)
	if !o.mu.writing {
		o.wakeWriter()
	}
	return true
}

// wakeWriter has the events' goroutine write what is queued.
func (o *output) wakeWriter() {
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// writeEvents writes what nobody else writes, until stopWriting.
func (o *output) writeEvents() {
	for {
		select {
		case <-o.wake:
			o.flush()
		case <-o.stop:
			return
		}
	}
}

// stopWriting ends writeEvents and whatever is being written.
func (o *output) stopWriting() {
	o.mu.Lock()
	o.endLocked()
	o.mu.Unlock()
	close(o.stop)
}

// flush writes all that is queued, unless somebody else does already.
func (o *output) flush() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.mu.writing {
		return
	}
	o.mu.writing = true
	for len(o.mu.queued) > 0 && !o.mu.closed {
		text := o.mu.queued
		o.mu.queued, o.mu.spare = o.mu.spare[:0], nil
		o.mu.unsent = len(text)
		o.mu.Unlock()
		_, err := o.conn.Write(text)
		o.mu.Lock()
		o.mu.unsent = 0
		if cap(text) <= keptQueue {
			o.mu.spare = text[:0]
		}
		if err != nil {
			o.closeLocked()
		}
		o.room.Broadcast()
	}
	o.mu.writing = false
}

// flushReplies writes what is queued, and waits until little is left. It
// returns false if the session is to end. A client that has gone is no reason:
// what it sent before counts.
func (o *output) flushReplies() bool {
	o.flush()
	o.mu.Lock()
	defer o.mu.Unlock()
	for len(o.mu.queued)+o.mu.unsent > highWater && !o.mu.closed {
		o.room.Wait()
	}
	return !o.mu.ended
}

// drainOutput waits until everything is written.
func (o *output) drainOutput() {
	o.flush()
	o.mu.Lock()
	defer o.mu.Unlock()
	o.waitEmptyLocked(context.Background())
}

func (o *output) waitEmptyLocked(ctx context.Context) {
	for len(o.mu.queued)+o.mu.unsent > 0 && !o.mu.closed && ctx.Err() == nil {
		o.room.Wait()
	}
}

// finish waits until what is queued is written, as long as ctx lasts, and ends
// the session.
func (o *output) finish(ctx context.Context) {
	stop := context.AfterFunc(ctx, func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		o.room.Broadcast()
	})
	defer stop()
	o.mu.Lock()
	o.waitEmptyLocked(ctx)
	o.endLocked()
	o.mu.Unlock()
	if _, ok := o.conn.(net.Conn); !ok {
		o.conn.Close() // all that can end a read
	}
}

// closeLocked makes the queue refuse everything.
func (o *output) closeLocked() {
	o.mu.closed = true
	o.mu.queued = nil
	o.room.Broadcast()
}

// endLocked also ends a read or write that waits for the client, and with it
// the session. Setting a deadline does not block.
func (o *output) endLocked() {
	o.closeLocked()
	o.mu.ended = true
	if c, ok := o.conn.(net.Conn); ok {
		c.SetDeadline(time.Unix(1, 0))
	}
}

// hangUp closes the connection such that the client gets all that was
// written: the kernel resets a connection that is closed with input unread.
// Nobody may be reading or writing.
func (o *output) hangUp() {
	if c, ok := o.conn.(interface {
		net.Conn
		syscall.Conn
		CloseWrite() error
	}); ok {
		c.CloseWrite()
		c.SetDeadline(time.Time{})
		if raw, err := c.SyscallConn(); err == nil {
			discardInput(raw)
		}
	}
	o.conn.Close()
}

// discardInput reads what has arrived. It does not wait for more.
func discardInput(raw syscall.RawConn) {
	var buf [4096]byte
	raw.Read(func(fd uintptr) bool {
		for {
			n, err := unix.Read(int(fd), buf[:])
			if n <= 0 && err != unix.EINTR {
				return true
			}
		}
	})
}
