// SPDX-License-Identifier: Apache-2.0

package nbd

import (
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/blkmirror/blkmirror/block"
	wire "github.com/blkmirror/blkmirror/block/nbd"
)

const (
	// A message holds at most so many requests and bytes, but for one that is longer by itself, so that the first in it need
	// not wait long for the last. Headers and small payloads fit into one buffer therefore.
	batchRequests = 64
	batchBytes    = 128 << 10

	// copiedPayload is the most data of a write that is copied next to its header; more is sent from where it is.
	copiedPayload = 16 << 10
)

// output is the message that the writer is sending. The lock is held while it is looked at or a system call works on it
// that does not wait, and never while the socket is full.
type output struct {
	sync.Mutex
	conn  *conn
	heads *block.Buffer // headers and small payloads, one behind the other
	used  int           // bytes of heads
	from  int           // where in heads the last part of it begins
	joins bool          // what is added to heads belongs to the last part
	batch []*request
	parts []part
	first int // the part that is sent next
	taken []*block.Buffer

	iov      [2 * batchRequests]unix.Iovec
	err      error
	tryWrite func(fd uintptr) bool // the method value, made once
}

// part is a piece of memory to send.
type part struct {
	b     []byte
	owner *request // whose payload it is; nil for memory of the output
}

func (o *output) init(c *conn) {
	o.conn, o.heads = c, block.GetBuffer(batchBytes)
	o.batch, o.parts = make([]*request, 0, batchRequests), make([]part, 0, 2*batchRequests)
	o.tryWrite = o.try
}

// collect makes a message of what is queued, and says whether there is anything.
func (o *output) collect() bool {
	o.Lock()
	defer o.Unlock()
	o.used, o.first, o.joins, o.parts = 0, 0, false, o.parts[:0]
	t := &o.conn.table
	t.Lock()
	size, n := 0, 0
	for _, r := range t.queue {
		size += wire.ExtendedRequestSize + len(r.payload)
		if n == batchRequests || n > 0 && size > batchBytes {
			break
		}
		r.phase = sending
		n++
	}
	o.batch = append(o.batch[:0], t.queue[:n]...)
	rest := copy(t.queue, t.queue[n:])
	clear(t.queue[rest:])
	t.queue = t.queue[:rest]
	t.Unlock()
	for _, r := range o.batch {
		o.add(r)
	}
	return n > 0
}

func (o *output) add(r *request) {
	from := o.used
	head := wire.Request{Flags: r.flags, Command: r.command, Cookie: r.cookie, Offset: uint64(r.off), Length: uint64(r.n)}
	b := o.heads.B[:from]
	if o.conn.export.extended {
		if r.command == wire.CmdWrite {
			head.Flags |= wire.FlagPayloadLen
		}
		b = head.AppendExtended(b)
	} else {
		b = head.Append(b)
	}
	small := len(r.payload) <= copiedPayload
	if small {
		b = append(b, r.payload...)
	}
	o.used = len(b)
	if o.joins {
		o.parts[len(o.parts)-1].b = o.heads.B[o.from:o.used]
	} else {
		o.parts, o.from = append(o.parts, part{b: b[from:]}), from
	}
	o.joins = small
	switch {
	case small:
	case o.conn.raw == nil:
		o.parts = append(o.parts, o.copied(r.payload))
	default:
		o.parts = append(o.parts, part{r.payload, r})
	}
}

// copied is a part with a copy of p.
func (o *output) copied(p []byte) part {
	b := block.GetBuffer(len(p))
	copy(b.B, p)
	o.taken = append(o.taken, b)
	return part{b: b.B}
}

// detach gives back the payload of r, whose caller has gone. The caller holds the lock.
func (o *output) detach(r *request) {
	for i := o.first; i < len(o.parts); i++ {
		if o.parts[i].owner == r {
			o.parts[i] = o.copied(o.parts[i].b)
		}
	}
}

// send sends the message.
func (o *output) send() error {
	if o.conn.raw == nil {
		for _, p := range o.parts { // all of it in memory of the output
			if _, err := o.conn.nc.Write(p.b); err != nil {
				return err
			}
		}
		return nil
	}
	if err := o.conn.raw.Write(o.tryWrite); err != nil {
		return err
	}
	return o.err
}

// try sends what the socket takes. It returns false if there is more.
func (o *output) try(fd uintptr) bool {
	o.Lock()
	defer o.Unlock()
	for o.first < len(o.parts) {
		n, errno := o.writev(fd)
		switch {
		case errno == unix.EINTR:
		case errno == unix.EAGAIN:
			return false
		case errno != 0:
			o.err = errno
			return true
		default:
			o.advance(n)
		}
	}
	return true
}

func (o *output) writev(fd uintptr) (int, unix.Errno) {
	n := 0
	for _, p := range o.parts[o.first:] {
		o.iov[n].Base = unsafe.SliceData(p.b)
		o.iov[n].SetLen(len(p.b))
		n++
	}
	written, _, errno := unix.Syscall(unix.SYS_WRITEV, fd, uintptr(unsafe.Pointer(&o.iov)), uintptr(n))
	clear(o.iov[:n]) // nobody's memory is kept alive
	return int(written), errno
}

func (o *output) advance(n int) {
	for n > 0 {
		p := &o.parts[o.first]
		step := min(n, len(p.b))
		p.b, n = p.b[step:], n-step
		if len(p.b) == 0 {
			o.first++
		}
	}
}

// sent tells the requests of the message that their payloads are not in use any more.
func (o *output) sent() {
	o.Lock()
	defer o.Unlock()
	t := &o.conn.table
	t.Lock()
	for i, r := range o.batch {
		r.phase = sent
		o.conn.settleLocked(r)
		o.batch[i] = nil
	}
	t.Unlock()
	o.batch = o.batch[:0]
	o.drop()
}

func (o *output) drop() {
	for _, b := range o.taken {
		b.Release()
	}
	o.taken = nil
	clear(o.parts)
	o.parts = o.parts[:0]
}

// release gives the memory back; the writer has ended.
func (o *output) release() {
	o.Lock()
	defer o.Unlock()
	o.drop()
	o.batch = nil
	o.heads.Release()
}
