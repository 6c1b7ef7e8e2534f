// SPDX-License-Identifier: Apache-2.0

package hosts

import (
	"testing"
	"time"
)

// TestLongLine: the line is long and loses packets. A mirror over it is slow, and right.
func TestLongLine(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, mode string
		wire       *wire
		pace       time.Duration // in background mode the copy must get ahead of the guest
		ending     ending
	}{
		{"50 ms", "write-blocking", &wire{delay: 50 * time.Millisecond}, 200 * time.Millisecond, pivotUnder},
		{"50 ms with jitter, loss 1 %", "background", &wire{delay: 50 * time.Millisecond, jitter: 20 * time.Millisecond, loss: 0.01},
			time.Second, pivotUnder},
		{"5 ms, loss 5 %", "write-blocking", &wire{delay: 5 * time.Millisecond, loss: 0.05}, 200 * time.Millisecond, pivot},
	} {
		t.Run(c.name, func(t *testing.T) {
			interop(t)
			t.Parallel()
			p := newPair(t, setup{wire: c.wire, size: 4 << 20, data: 2 << 20, connection: 4, pace: c.pace})
			p.bound = noticed
			p.mirror(args{"copy-mode": c.mode})
			p.ready()
			p.guest.more(10, noticed)
			p.finish(c.ending)
			if c.wire.loss > 0 && c.wire.lost.Load() == 0 {
				t.Error("the wire lost nothing")
			}
			p.t.Logf("the wire lost %d packets", c.wire.lost.Load())
			p.noErrors()
		})
	}
}

// TestSilence: packets vanish without a word. Neither side is told that the other is gone.
func TestSilence(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, mode string
		length     time.Duration
		early      bool
		restart    bool // the target's daemon, while nothing gets through
		ending     ending
	}{
		{"3 s, write-blocking", "write-blocking", 3 * time.Second, false, false, pivotUnder},
		{"3 s, background, before ready", "background", 3 * time.Second, true, false, pivot},
		{"20 s, write-blocking", "write-blocking", 20 * time.Second, false, false, pivotUnder},
		{"20 s, background, restarted", "background", 20 * time.Second, false, true, pivot},
	} {
		t.Run(c.name, func(t *testing.T) {
			interop(t)
			t.Parallel()
			w := &wire{}
			p := newPair(t, setup{wire: w})
			if c.mode != "background" {
				p.bound = noticed
			}
			p.mirror(args{"copy-mode": c.mode, "speed": slow})
			if c.early {
				p.copied(1 << 20)
			} else {
				p.ready()
				p.guest.more(10, quick)
			}
			w.silent.Store(true)
			if c.restart {
				p.target.kill()
			}
			p.last(c.length)
			if c.restart {
				p.startTarget()
			}
			w.silent.Store(false)
			p.guest.more(10, noticed)
			p.finish(c.ending)
			p.noErrors()
		})
	}
}

// TestSilentForGood: a forced cancel does not wait for a peer that is gone without a word.
func TestSilentForGood(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"background", "write-blocking"} {
		t.Run(mode, func(t *testing.T) {
			interop(t)
			t.Parallel()
			w := &wire{}
			p := newPair(t, setup{wire: w})
			p.mirror(args{"copy-mode": mode})
			p.ready()
			p.guest.more(10, quick)
			w.silent.Store(true)
			p.last(time.Second)
			told := time.Now()
			p.source.do("block-job-cancel", args{"device": "m", "force": true})
			p.source.wait("BLOCK_JOB_CANCELLED", args{"device": "m"})
			if took := time.Since(told); took > quick {
				t.Errorf("the job took %v to end after it was cancelled by force", took)
			}
			p.gaveUp()
		})
	}
}
