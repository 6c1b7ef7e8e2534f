// SPDX-License-Identifier: Apache-2.0

package nbd

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/blkmirror/blkmirror/block/bitmap"
	wire "github.com/blkmirror/blkmirror/block/nbd"
)

// leftovers are changes and flushes that their callers gave up and that have no reply yet. A server may carry out what it
// has in any order, so nothing that overlaps one of them is sent before its reply has come, or its connection has ended.
type leftovers struct {
	count atomic.Int32 // entries of mu.list, so that it costs nothing while there is none
	mu    struct {
		sync.Mutex
		list     []*request
		answered chan struct{} // closed when the list gets shorter; nil while nobody waits for that
		flush    error         // of a flush in the list that failed; the next flush tells it
	}
}

// add takes a request whose caller has gone. It is called under the table's lock, as remove is.
func (l *leftovers) add(r *request) {
	if !r.changes() && r.command != wire.CmdFlush {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mu.list = append(l.mu.list, r)
	l.count.Add(1)
}

// remove takes out a request that has its outcome.
func (l *leftovers) remove(r *request) {
	l.mu.Lock()
	defer l.mu.Unlock()
	at := slices.Index(l.mu.list, r)
	if at < 0 {
		return
	}
	l.mu.list = slices.Delete(l.mu.list, at, at+1)
	l.count.Add(-1)
	if r.command == wire.CmdFlush && r.err != nil && !r.lost {
		l.mu.flush = r.err
	}
	if l.mu.answered != nil {
		close(l.mu.answered)
		l.mu.answered = nil
	}
}

// wait waits until r may be sent.
func (l *leftovers) wait(ctx context.Context, r *request) error {
	for l.count.Load() > 0 {
		answered := l.inTheWay(r)
		if answered == nil {
			break
		}
		select {
		case <-answered:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// inTheWay is closed when it is worth another look; nil if nothing overlaps r.
func (l *leftovers) inTheWay(r *request) <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	overlaps := func(other *request) bool {
		if r.command == wire.CmdFlush || other.command == wire.CmdFlush {
			return r.command == other.command
		}
		return other.off < r.off+r.n && r.off < other.off+other.n
	}
	if !slices.ContainsFunc(l.mu.list, overlaps) {
		return nil
	}
	if l.mu.answered == nil {
		l.mu.answered = make(chan struct{})
	}
	return l.mu.answered
}

// flushFailed is the error of a flush that nobody heard of, once.
func (l *leftovers) flushFailed() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	err := l.mu.flush
	l.mu.flush = nil
	return err
}

// suspects are where changes were under way when a connection was lost: the server may carry them out at any time.
type suspects struct {
	sync.Mutex
	set *bitmap.Bitmap // nil while there is none
}

const (
	suspectUnit   = 4 << 10 // the least unit in which they are remembered
	suspectMemory = 1 << 20 // and the most memory for that, bytes
)

func (s *suspects) add(size, off, n int64) {
	s.Lock()
	defer s.Unlock()
	if s.set == nil {
		s.set, _ = bitmap.New(size, bitmap.MinGranularity(size, suspectUnit, suspectMemory))
	}
	s.set.Set(s.set.Outward(off, n))
}

// Suspects lists them, see [block.SuspectReporter].
func (d *Disk) Suspects(f func(off, n int64)) {
	s := &d.suspects
	s.Lock()
	defer s.Unlock()
	if s.set == nil {
		return
	}
	all := s.set.All().End
	for first := s.set.NextSetBefore(0, all); first < all; {
		end := s.set.RunEnd(first, all)
		f(s.set.Bytes(bitmap.Chunks{First: first, End: end}))
		first = s.set.NextSetBefore(end, all)
	}
}
