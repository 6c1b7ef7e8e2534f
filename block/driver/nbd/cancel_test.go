// SPDX-License-Identifier: Apache-2.0

package nbd

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/blocktest"
)

var errGivenUp = errors.New("given up")

// prompt is how long a caller may be held up that does not want to wait any more. It is generous for busy machines.
const prompt = 2 * time.Second

// TestCancelWithDeadPeer freezes the network with requests half way, in both directions, and has all callers give up.
// Their buffers are theirs at once, and when the network is back the stream is whole.
func TestCancelWithDeadPeer(t *testing.T) {
	for _, connections := range []int{1, 2} {
		h := newHouseOf(t, blocktest.NewMemOf(pattern(8*mib, 1), blocktest.MemOptions{}))
		p, o := h.throughProxy(Options{ReconnectDelay: patience, Connections: connections})
		d := open(t, o)
		sessions := make(chan bool, 10)
		defer d.OnReconnect(func(bool) { sessions <- true })()
		must(t, d.Flush(bounded(t)))
		p.freeze()
		ctx, cancel := context.WithCancelCause(t.Context())
		var wg sync.WaitGroup
		var buffers [][]byte
		for i := range 2 * maxInFlight * connections { // more than there is room for
			b := make([]byte, 64*kib)
			buffers = append(buffers, b)
			wg.Go(func() {
				var err error
				off := int64(i%64) * 64 * kib
				switch i % 4 {
				case 0:
					err = d.WriteAt(ctx, b, off, 0)
				case 1:
					err = d.ReadAt(ctx, b, 4*mib+off)
				case 2:
					err = d.WriteZeroes(ctx, off, 64*kib, 0)
				case 3:
					err = d.Flush(ctx)
				}
				if !errors.Is(err, errGivenUp) {
					t.Errorf("error is %v", err)
				}
			})
		}
		for s := d.session.Load(); len(s.conns[0].free) > 0; time.Sleep(time.Millisecond) { // until it is full
		}
		began := time.Now()
		cancel(errGivenUp)
		wg.Wait()
		if took := time.Since(began); took > prompt {
			t.Errorf("held up for %v", took)
		}
		for _, b := range buffers {
			for i := range b {
				b[i] = 0xee
			}
		}
		p.thaw()
		got := make([]byte, 4*mib)
		must(t, d.ReadAt(bounded(t), got, 4*mib))
		if !bytes.Equal(got, pattern(8*mib, 1)[4*mib:]) {
			t.Error("another content after the network came back")
		}
		must(t, d.Flush(bounded(t)))
		must(t, d.ReadAt(bounded(t), got, 0))
		if bytes.IndexByte(got, 0xee) >= 0 {
			t.Error("a write took its buffer after it had given it back")
		}
		for _, b := range buffers {
			if !bytes.Equal(b, bytes.Repeat([]byte{0xee}, len(b))) {
				t.Error("a read touched its buffer after it had given it back")
				break
			}
		}
		if len(sessions) > 0 {
			t.Error("the connection was lost")
		}
	}
}

// TestCancelledWriteIsSuspect tells what was sent from what was not.
func TestCancelledWriteIsSuspect(t *testing.T) {
	h := newFullHouse(t)
	d := open(t, h.options())
	came, release := h.hold(block.OpWrite)
	ctx, cancel := context.WithCancelCause(t.Context())
	done := start(func() error { return d.WriteAt(ctx, make([]byte, 4*kib), 0, 0) })
	wait(t, came, "the write")
	cancel(errGivenUp)
	if err := wait(t, done, "the end"); !errors.Is(err, errGivenUp) || !block.IsSuspect(err) {
		t.Errorf("error is %v", err)
	}
	release()
	must(t, d.Flush(bounded(t)))
}

// TestCancelWhileThereIsNoSession wants that the delay holds up nobody who does not want to wait.
func TestCancelWhileThereIsNoSession(t *testing.T) {
	h := newFullHouse(t)
	p, o := h.throughProxy(Options{ReconnectDelay: time.Hour})
	d := open(t, o)
	p.down()
	noticed(t, d)
	ctx, cancel := context.WithCancelCause(t.Context())
	done := start(func() error { return d.WriteAt(ctx, make([]byte, 4*kib), 0, 0) })
	cancel(errGivenUp)
	if err := wait(t, done, "the end"); !errors.Is(err, errGivenUp) || block.IsSuspect(err) {
		t.Errorf("error is %v", err)
	}
}

// TestCloseWithDeadPeer closes while nothing comes from the server, and while there is none.
func TestCloseWithDeadPeer(t *testing.T) {
	for _, frozen := range []bool{true, false} {
		h := newFullHouse(t)
		p, o := h.throughProxy(Options{ReconnectDelay: time.Hour, Connections: 3})
		d := open(t, o)
		if frozen {
			p.freeze()
		} else {
			p.down()
		}
		began := time.Now()
		must(t, d.Close())
		if took := time.Since(began); took > prompt {
			t.Errorf("held up for %v", took)
		}
		wantErr(t, d.Flush(bounded(t)), block.KindShutdown, "closed")
	}
}

// TestServerLearnsOfClose wants the server to be rid of a client as soon as the node is closed.
func TestServerLearnsOfClose(t *testing.T) {
	h := newFullHouse(t)
	o := h.options()
	o.Connections = 4
	d := open(t, o)
	if n := len(d.session.Load().conns); n != 4 {
		t.Errorf("%d connections", n)
	}
	must(t, d.ReadAt(bounded(t), make([]byte, mib), 0))
	must(t, d.Close())
	must(t, h.exports.Remove(bounded(t), "e", false))
}
