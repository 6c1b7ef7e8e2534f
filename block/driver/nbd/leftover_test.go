// SPDX-License-Identifier: Apache-2.0

package nbd

import (
	"bytes"
	"context"
	"errors"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/blocktest"
)

// holdFirst keeps the first request of a kind at the server until release, when it ends with err.
func (h *house) holdFirst(op block.Op, err error) (came <-chan blocktest.Call, release func()) {
	arrived, open := make(chan blocktest.Call, 1), make(chan struct{})
	var once atomic.Bool
	h.disk.SetHook(func(ctx context.Context, c blocktest.Call) error {
		if c.Op != op || !once.CompareAndSwap(false, true) {
			return nil
		}
		arrived <- c
		select {
		case <-open:
		case <-ctx.Done():
		}
		return err
	})
	release = sync.OnceFunc(func() { close(open) })
	h.t.Cleanup(release)
	return arrived, release
}

// giveUp has a request given up that the server holds.
func giveUp(t *testing.T, came <-chan blocktest.Call, do func(ctx context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancelCause(t.Context())
	done := start(func() error { return do(ctx) })
	wait(t, came, "the request")
	cancel(errGivenUp)
	if err := wait(t, done, "the end"); !errors.Is(err, errGivenUp) {
		t.Fatalf("error is %v", err)
	}
}

// waiting says how many requests of a node have not been sent because of what was given up before.
func (l *leftovers) waiting() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.mu.answered != nil
}

// TestGivenUpWriteComesFirst: what a server carries out late is not the last that happens to its range, and nobody reads there
// before.
func TestGivenUpWriteComesFirst(t *testing.T) {
	for _, connections := range []int{1, 3} {
		for _, c := range eachKind {
			h := newFullHouse(t)
			o := h.options()
			o.Connections = connections
			d := open(t, o)
			came, release := h.holdFirst(block.OpWrite, nil)
			old := pattern(4*kib, 0x40)
			giveUp(t, came, func(ctx context.Context) error { return d.WriteAt(ctx, old, 8*kib, 0) })
			must(t, d.WriteAt(bounded(t), old, 128*kib, 0)) // in nobody's way
			if c.op == block.OpFlush {
				must(t, d.Flush(bounded(t))) // concerns what was answered
				release()
				continue
			}
			done := start(func() error { return c.do(bounded(t), d) })
			for ctx := bounded(t); !d.leftovers.waiting(); runtime.Gosched() {
				must(t, ctx.Err())
			}
			short, cancel := context.WithTimeout(t.Context(), time.Millisecond)
			if err := c.do(short, d); !errors.Is(err, context.DeadlineExceeded) || block.IsSuspect(err) {
				t.Errorf("%s: a request that was not sent ends with %v", c.op, err)
			}
			cancel()
			if len(done) > 0 {
				t.Errorf("%s: it did not wait", c.op)
			}
			release()
			must(t, wait(t, done, "the later request"))
			got := make([]byte, 64*kib)
			must(t, d.ReadAt(bounded(t), got, 0))
			if c.op != block.OpRead && c.op != block.OpStatus && !bytes.Equal(got, make([]byte, 64*kib)) {
				t.Errorf("%s: the write that was given up came last", c.op)
			}
			if n := d.leftovers.count.Load(); n != 0 || len(d.leftovers.mu.list) != 0 {
				t.Errorf("%s: %d requests left", c.op, n)
			}
		}
	}
}

// TestGivenUpFlushIsNotForgotten: the failure of a flush that nobody waited for is the next one's.
func TestGivenUpFlushIsNotForgotten(t *testing.T) {
	for _, failure := range []error{nil, syscall.EIO} {
		h := newFullHouse(t)
		d := open(t, h.options())
		came, release := h.holdFirst(block.OpFlush, failure)
		giveUp(t, came, d.Flush)
		done := start(func() error { return d.Flush(bounded(t)) })
		for ctx := bounded(t); !d.leftovers.waiting(); runtime.Gosched() {
			must(t, ctx.Err())
		}
		release()
		if err := wait(t, done, "the flush"); (err == nil) != (failure == nil) {
			t.Errorf("after a flush that ended with %v the next one ends with %v", failure, err)
		}
		must(t, d.Flush(bounded(t)))
	}
}

// TestSuspectsOutliveTheirUser: whoever uses the disk next can ask where a lost server may still write.
func TestSuspectsOutliveTheirUser(t *testing.T) {
	h := newFullHouse(t)
	p, o := h.throughProxy(Options{ReconnectDelay: patience})
	d := open(t, o)
	suspects := func() (list []int64) {
		node(t, d).Suspects(func(off, n int64) { list = append(list, off, n) })
		return list
	}
	came, release := h.holdFirst(block.OpWrite, nil)
	giveUp(t, came, func(ctx context.Context) error { return d.WriteAt(ctx, make([]byte, 4*kib), 8*kib, 0) })
	if len(suspects()) != 0 {
		t.Errorf("suspects of a session that lives: %v", suspects())
	}
	p.cut()
	release()
	must(t, d.WriteAt(bounded(t), make([]byte, 4*kib), 8*kib, 0)) // nothing is waited for that will not come
	if s := suspects(); len(s) != 2 || s[0] != 8*kib || s[1] != 4*kib {
		t.Errorf("suspects: %v", s)
	}
}
