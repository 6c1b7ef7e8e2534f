// SPDX-License-Identifier: Apache-2.0

package nbd

import (
	"context"
	"sync"
	"time"

	"github.com/blkmirror/blkmirror/block"
	wire "github.com/blkmirror/blkmirror/block/nbd"
)

// fresh is how long an answer is kept. Others may write to the export, too, and between two jobs they do.
const fresh = time.Second

// extent is a part of the disk of one status.
type extent struct {
	n      int64
	status block.Status
}

// extents is the last answer to a question for block status, less what was changed since by us.
//
// A write may be carried out at any time until it returns, so the extents that touch it are forgotten when it does; an
// answer that was on its way meanwhile may be older, and is cut, too.
type extents struct {
	mu struct {
		sync.Mutex
		off, end int64    // where the answer is good
		list     []extent // from off on, past end maybe; in whole
		whole    []extent
		until    time.Time
		asked    []*question // answers on their way
	}
}

// question is a range that was asked about and where the answer is still good.
type question struct{ off, end int64 }

// find tells what is known of the extent at off.
func (x *extents) find(off, n int64) (block.Extent, bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if off < x.mu.off || off >= x.mu.end || time.Now().After(x.mu.until) {
		return block.Extent{}, false
	}
	at := x.mu.off
	for i, e := range x.mu.list {
		if off < at+e.n {
			n = min(n, at+e.n-off, x.mu.end-off)
			x.mu.list, x.mu.off = x.mu.list[i:], at // scans go forward
			return block.Extent{Len: n, Status: e.status}, true
		}
		at += e.n
	}
	return block.Extent{}, false
}

func (x *extents) ask(q *question) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.mu.asked = append(x.mu.asked, q)
}

// answer ends a question. What is good of a successful answer is kept.
func (x *extents) answer(q *question, off int64, list []extent) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for i, other := range x.mu.asked {
		if other == q {
			last := len(x.mu.asked) - 1
			x.mu.asked[i], x.mu.asked[last] = x.mu.asked[last], nil
			x.mu.asked = x.mu.asked[:last]
			break
		}
	}
	end := off
	for _, e := range list {
		end += e.n
	}
	if end = min(end, q.end); end > off {
		x.mu.off, x.mu.end, x.mu.until = off, end, time.Now().Add(fresh)
		x.mu.whole = append(x.mu.whole[:0], list...)
		x.mu.list = x.mu.whole
	}
}

// changed forgets what is known of a range.
func (x *extents) changed(off, n int64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.mu.off < off+n && off < x.mu.end {
		x.mu.end = off // nothing, if that is before the start
	}
	for _, q := range x.mu.asked {
		if q.off < off+n && off < q.end {
			q.end = off
		}
	}
}

// forget forgets everything.
func (x *extents) forget() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.mu.end = x.mu.off
	for _, q := range x.mu.asked {
		q.end = q.off
	}
}

// statusOf is what the flags of an extent mean. In another context than base:allocation, zero is not what they say.
func (d *Disk) statusOf(flags uint64) block.Status {
	status := block.StatusAllocated
	if flags&uint64(wire.StateHole) == 0 {
		status |= block.StatusData
	}
	if flags&uint64(wire.StateZero) != 0 && d.options.Context == "" {
		status |= block.StatusZero
	}
	return status
}

// BlockStatus asks the server, unless the answer to the last question covers it. Without a context everything is data.
func (d *Disk) BlockStatus(ctx context.Context, off, n int64) (block.Extent, error) {
	if over := off + n - d.export.size; over > 0 {
		if n -= over; n <= 0 {
			return block.Extent{Len: n + over, Status: block.StatusZero | block.StatusAllocated}, nil
		}
	}
	if e, ok := d.cache.find(off, n); ok {
		return e, nil
	}
	s, err := d.current(ctx)
	if err != nil {
		return block.Extent{}, err
	}
	if !s.export.status {
		return block.Extent{Len: n, Status: block.StatusData | block.StatusAllocated}, nil
	}
	// Whole units must be asked about. More than was wanted is good for the next question.
	align := d.limits.RequestAlign
	from := off &^ (align - 1)
	length := min((off+n+align-1)&^(align-1)-from, maxRange)
	q := &question{from, from + length}
	d.cache.ask(q)
	r := newRequest(wire.CmdBlockStatus, from, length)
	if err := d.do(ctx, r); err != nil {
		d.cache.answer(q, from, nil)
		return block.Extent{}, err
	}
	d.cache.answer(q, from, r.extents)
	defer r.recycle()
	at := from
	for _, e := range r.extents {
		if off < at+e.n {
			return block.Extent{Len: min(at+e.n-off, n), Status: e.status}, nil
		}
		at += e.n
	}
	// Nothing about the part that was wanted, only about what stands before it in the same unit.
	return block.Extent{Len: min(align, n), Status: block.StatusData | block.StatusAllocated}, nil
}
