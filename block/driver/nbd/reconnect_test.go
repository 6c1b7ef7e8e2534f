// SPDX-License-Identifier: Apache-2.0

package nbd

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/blocktest"
)

// hold makes requests of a kind wait on the disk. Each that came is told; they go on with release, or when their server
// gives them up.
func (h *house) hold(op block.Op) (came <-chan blocktest.Call, release func()) {
	arrived, open := make(chan blocktest.Call, 100), make(chan struct{})
	h.disk.SetHook(func(ctx context.Context, c blocktest.Call) error {
		if c.Op != op {
			return nil
		}
		arrived <- c
		select {
		case <-open:
		case <-ctx.Done():
		}
		return nil
	})
	release = sync.OnceFunc(func() { h.disk.SetHook(nil); close(open) })
	h.t.Cleanup(release)
	return arrived, release
}

// requests are one of each kind.
var eachKind = []struct {
	op      block.Op
	suspect bool // when it fails half way
	do      func(ctx context.Context, d *Disk) error
}{
	{block.OpRead, false, func(ctx context.Context, d *Disk) error { return d.ReadAt(ctx, make([]byte, 64*kib), 0) }},
	{block.OpWrite, true, func(ctx context.Context, d *Disk) error { return d.WriteAt(ctx, make([]byte, 64*kib), 0, 0) }},
	{block.OpZero, true, func(ctx context.Context, d *Disk) error { return d.WriteZeroes(ctx, 0, 64*kib, 0) }},
	{block.OpTrim, true, func(ctx context.Context, d *Disk) error { return d.Discard(ctx, 0, 64*kib) }},
	{block.OpFlush, false, func(ctx context.Context, d *Disk) error { return d.Flush(ctx) }},
	{block.OpStatus, false, func(ctx context.Context, d *Disk) error {
		_, err := d.BlockStatus(ctx, 0, 64*kib)
		return err
	}},
}

// start carries something out in the background.
func start(f func() error) <-chan error {
	done := make(chan error, 1)
	go func() { done <- f() }()
	return done
}

// noticed waits until the disk knows that its connection is lost.
func noticed(t testing.TB, d *Disk) {
	t.Helper()
	for ctx := bounded(t); d.session.Load() != nil; runtime.Gosched() {
		must(t, ctx.Err())
	}
}

func TestLossWithoutDelay(t *testing.T) {
	for _, c := range eachKind {
		t.Run(string(c.op), func(t *testing.T) {
			h := newFullHouse(t)
			p, o := h.throughProxy(Options{})
			d := open(t, o)
			came, release := h.hold(c.op)
			done := start(func() error { return c.do(bounded(t), d) })
			wait(t, came, "the request")
			p.down()
			err := wait(t, done, "the failure")
			wantErr(t, err, block.KindIO, "was lost")
			if block.IsSuspect(err) != c.suspect {
				t.Errorf("suspect: %v", !c.suspect)
			}
			err = c.do(bounded(t), d)
			wantErr(t, err, block.KindIO, "was lost")
			if block.IsSuspect(err) {
				t.Error("a request that was never sent is suspect")
			}
			release()
			p.up()
			for ctx := bounded(t); c.do(ctx, d) != nil; runtime.Gosched() {
				if ctx.Err() != nil {
					t.Fatal("no new session")
				}
			}
		})
	}
}

func TestLossWithDelay(t *testing.T) {
	for _, watched := range []bool{false, true} {
		for _, c := range eachKind {
			name := string(c.op)
			if watched {
				name += ", watched"
			}
			t.Run(name, func(t *testing.T) {
				h := newFullHouse(t)
				p, o := h.throughProxy(Options{ReconnectDelay: patience})
				d := open(t, o)
				if watched {
					defer d.OnReconnect(func(bool) {})()
				}
				came, release := h.hold(c.op)
				done := start(func() error { return c.do(bounded(t), d) })
				wait(t, came, "the request")
				p.down()
				release()
				again := watched && c.op != block.OpRead && c.op != block.OpStatus
				if again {
					err := wait(t, done, "the failure")
					wantErr(t, err, block.KindIO, "was lost")
					if block.IsSuspect(err) != c.suspect {
						t.Errorf("suspect: %v", !c.suspect)
					}
				}
				waiting := start(func() error { return c.do(bounded(t), d) })
				p.up()
				must(t, wait(t, waiting, "what waited for the new session"))
				if !again {
					must(t, wait(t, done, "the request that was sent again"))
				}
			})
		}
	}
}

func TestDelayEnds(t *testing.T) {
	h := newHouse(t, blocktest.MemOptions{Size: mib})
	p, o := h.throughProxy(Options{ReconnectDelay: 50 * time.Millisecond})
	d := open(t, o)
	p.down()
	began := time.Now()
	wantErr(t, d.ReadAt(bounded(t), make([]byte, 512), 0), block.KindIO, "was lost")
	if took := time.Since(began); took < 20*time.Millisecond {
		t.Errorf("failed after %v", took)
	}
	began = time.Now()
	wantErr(t, d.Flush(bounded(t)), block.KindIO, "was lost")
	if took := time.Since(began); took > 40*time.Millisecond {
		t.Errorf("waited %v after the delay", took)
	}
	told := make(chan bool, 1)
	defer d.OnReconnect(func(unflushed bool) { told <- unflushed })()
	p.up()
	wait(t, told, "the new session")
	for ctx := bounded(t); d.Flush(ctx) != nil && ctx.Err() == nil; runtime.Gosched() {
	}
	must(t, d.Flush(bounded(t)))
}

func TestRequestsThatDoNotWait(t *testing.T) {
	h := newFullHouse(t)
	p, o := h.throughProxy(Options{ReconnectDelay: time.Hour})
	d := open(t, o)
	p.down()
	noticed(t, d)
	for _, c := range eachKind {
		if err := c.do(block.WithoutWaiting(bounded(t)), d); !errors.Is(err, block.ErrDisconnected) || block.IsSuspect(err) {
			t.Errorf("%s: %v", c.op, err)
		}
	}
}

// TestSessionsThatDoNotLast has a server that ends every connection at once.
func TestSessionsThatDoNotLast(t *testing.T) {
	h := newFullHouse(t)
	p, o := h.throughProxy(Options{ReconnectDelay: 300 * time.Millisecond})
	d := open(t, o)
	came, _ := h.hold(block.OpRead)
	done := start(func() error { return d.ReadAt(bounded(t), make([]byte, 512), 0) })
	for {
		select {
		case <-came:
			p.cut()
			continue
		case err := <-done:
			wantErr(t, err, block.KindIO, "was lost")
		case <-time.After(patience):
			t.Fatal("sent again for ever")
		}
		return
	}
}

func TestUnflushed(t *testing.T) {
	h := newHouse(t, blocktest.MemOptions{Size: mib})
	p, o := h.throughProxy(Options{ReconnectDelay: patience})
	d := open(t, o)
	told := make(chan bool, 1)
	cancel := d.OnReconnect(func(unflushed bool) { told <- unflushed })
	lose := func() bool {
		p.cut()
		return wait(t, told, "the new session")
	}
	ctx, b := bounded(t), make([]byte, 4*kib)
	for _, step := range []struct {
		what string
		do   func() error
		want bool
	}{
		{"nothing", func() error { return nil }, false},
		{"read", func() error { return d.ReadAt(ctx, b, 0) }, false},
		{"write with FUA", func() error { return d.WriteAt(ctx, b, 0, block.FUA) }, false},
		{"write", func() error { return d.WriteAt(ctx, b, 0, 0) }, true},
		{"flush", func() error { return d.Flush(ctx) }, false},
		{"zeroes", func() error { return d.WriteZeroes(ctx, 0, 512, 0) }, true},
		{"flush", func() error { return d.Flush(ctx) }, false},
		{"discard", func() error { return d.Discard(ctx, 0, 4*kib) }, true},
	} {
		must(t, step.do())
		if got := lose(); got != step.want {
			t.Errorf("%s: unflushed is %v", step.what, got)
		}
	}
	cancel()
	p.cut()
	must(t, d.Flush(ctx))
	if len(told) > 0 {
		t.Error("told after cancel")
	}
}

// TestToldBeforeUse wants users to know of a new session before it carries out anything.
func TestToldBeforeUse(t *testing.T) {
	h := newHouse(t, blocktest.MemOptions{Size: mib})
	p, o := h.throughProxy(Options{ReconnectDelay: patience})
	d := open(t, o)
	telling, told := make(chan struct{}), make(chan struct{})
	defer d.OnReconnect(func(bool) { telling <- struct{}{}; <-told })()
	p.down()
	noticed(t, d)
	done := start(func() error { return d.WriteAt(bounded(t), make([]byte, 512), 0, 0) })
	p.up()
	wait(t, telling, "the new session")
	if n, _ := h.disk.Count(block.OpWrite); n > 0 || len(done) > 0 {
		t.Error("written before users were told")
	}
	close(told)
	must(t, wait(t, done, "the write"))
}

func TestAnotherExportAfterLoss(t *testing.T) {
	h := newHouse(t, blocktest.MemOptions{Size: mib})
	other := newHouse(t, blocktest.MemOptions{Size: 2 * mib})
	p, o := h.throughProxy(Options{ReconnectDelay: patience})
	d := open(t, o)
	p.down()
	p.to = other.path
	p.up()
	err := d.Flush(bounded(t))
	wantErr(t, err, block.KindIO, "has 2097152 bytes now, not 1048576")
	p.down()
	p.to = h.path
	p.up()
	wantErr(t, d.Flush(bounded(t)), block.KindIO, "must be opened again") // for good
}

func TestReconnectUnderLoad(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	for _, connections := range []int{1, 3} {
		const workers, each = 8, 128 * kib
		h := newHouse(t, blocktest.MemOptions{Size: workers * each})
		p, o := h.throughProxy(Options{ReconnectDelay: patience, Connections: connections})
		d := open(t, o)
		model := make([]byte, workers*each)
		stop := make(chan struct{})
		cutter := start(func() error {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return nil
				case <-time.After(time.Duration(5+i%30) * time.Millisecond):
					p.cut()
				}
			}
		})
		var wg sync.WaitGroup
		for w := range workers {
			wg.Go(func() {
				random := rand.New(rand.NewPCG(seed, uint64(w)))
				own, base := model[w*each:(w+1)*each], int64(w*each)
				buf := make([]byte, each)
				for i := range 150 {
					off := random.Int64N(each)
					n := 1 + random.Int64N(each-off)
					var err error
					switch random.IntN(5) {
					case 0:
						err = d.WriteZeroes(t.Context(), base+off, n, block.MayUnmap)
						clear(own[off : off+n])
					case 1:
						if err = d.ReadAt(t.Context(), buf[:n], base+off); err == nil && !bytes.Equal(buf[:n], own[off:off+n]) {
							t.Errorf("worker %d: another content at %d+%d", w, base+off, n)
							return
						}
					case 2:
						err = d.Flush(t.Context())
					default:
						copy(own[off:off+n], pattern(int(n), byte(i*16)))
						err = d.WriteAt(t.Context(), own[off:off+n], base+off, 0)
					}
					if err != nil {
						t.Errorf("worker %d: %v", w, err)
						return
					}
				}
			})
		}
		wg.Wait()
		close(stop)
		must(t, wait(t, cutter, "the end of the cuts"))
		must(t, d.Flush(bounded(t)))
		got := make([]byte, len(model))
		must(t, d.ReadAt(bounded(t), got, 0))
		if !bytes.Equal(got, model) {
			t.Error("another content at the end")
		}
	}
}
