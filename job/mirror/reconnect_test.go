// SPDX-License-Identifier: Apache-2.0

package mirror

import (
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/blocktest"
	"github.com/blkmirror/blkmirror/job"
)

// I9: a write failed when the connection died, and an old server carries it out later, over what was copied since. Completion
// reads the range back.
func TestDelayedOldWriteDoesNotWin(t *testing.T) {
	in(t, func(t *testing.T) {
		r := plain(t, 1*mib)
		m := r.start(Options{Mode: WriteBlocking, AutoFinalize: true, OnTargetError: job.PolicyIgnore, Granularity: 4096})
		r.ready(m)
		var died atomic.Bool
		r.target.onRequest(func(c blocktest.Call) error {
			if c.Op == block.OpWrite && died.CompareAndSwap(false, true) {
				return block.Suspect(errors.New("the connection was lost"))
			}
			return nil
		})
		old := pattern(1, 4096)
		must(t, r.guest.WriteAt(bg, old, 8192, 0))
		must(t, r.guest.WriteAt(bg, pattern(2, 4096), 8192, 0))
		synctest.Wait()
		must(t, r.target.mem.WriteAt(bg, old, 8192, 0)) // the old server
		must(t, m.job.Complete(nil))
		r.over(m)
		r.same()
	})
}

// I8: after a new session the target may have lost what was not flushed.
func TestReconnectedTargetIsNotTrusted(t *testing.T) {
	in(t, func(t *testing.T) {
		r := plain(t, 1*mib)
		m := r.start(Options{Mode: WriteBlocking, AutoFinalize: true})
		r.ready(m)
		must(t, r.guest.WriteAt(bg, pattern(1, 4096), 8192, 0))
		must(t, r.guest.WriteZeroes(bg, 65536, 65536, 0))
		r.target.lose() // the server restarted
		m.mu.Lock()
		m.planner.lost()
		m.mu.Unlock()
		m.job.Poke()
		must(t, m.job.Complete(nil))
		r.over(m)
		r.same()
	})
}

// behindNetwork puts the target of a rig behind a connection.
func (r *rig) behindNetwork(delay time.Duration) *network {
	r.target.net = newNetwork(r.target, 1, delay, &tally{})
	r.target.net.final = func() bool { return r.guest.Gate().Closed() }
	r.t.Cleanup(func() { // the server does what it still has
		r.target.net.mend(true)
		time.Sleep(10 * time.Second)
	})
	return r.target.net
}

// I9: a request to the target is padded to what its server takes, so all of that may change later.
func TestSuspectsArePadded(t *testing.T) {
	in(t, func(t *testing.T) {
		size := int64(64 * kib)
		o := blocktest.MemOptions{Size: size}
		o.Limits.RequestAlign = 4096
		r := newRig(t, newDisk(1, pattern(1, size), blocktest.MemOptions{}), newDisk(2, nil, o), unmapping, unmapping)
		m := r.start(Options{Mode: WriteBlocking, AutoFinalize: true, OnTargetError: job.PolicyIgnore, Granularity: 512})
		r.ready(m)
		var died atomic.Bool
		r.target.onRequest(func(c blocktest.Call) error {
			if c.Op == block.OpWrite && died.CompareAndSwap(false, true) {
				return block.Suspect(errors.New("the connection was lost"))
			}
			return nil
		})
		old := r.target.Bytes()[8192:12288]
		must(t, r.guest.WriteAt(bg, pattern(2, 512), 8192+1024, 0)) // fails
		copy(old[1024:], pattern(2, 512))
		must(t, r.guest.WriteAt(bg, pattern(3, 512), 8192, 0))
		synctest.Wait()
		must(t, r.target.mem.WriteAt(bg, old, 8192, 0)) // the old server, with the padding
		must(t, m.job.Complete(nil))
		r.over(m)
		r.same()
	})
}

// I8: what was zeroed at the start may be lost before all of it is.
func TestLossDuringPreZeroing(t *testing.T) {
	p, err := newPlanner(4*mib, 64*kib, Background)
	must(t, err)
	p.touch(mib, 64*kib)
	p.lost()
	p.targetIsZero()
	for chunk := range p.d.All().End {
		if lost := chunk/16 == 1; p.d.Test(chunk) != lost || p.z.Test(chunk) == lost {
			t.Errorf("chunk %d: dirty %v, zero %v", chunk, p.d.Test(chunk), p.z.Test(chunk))
		}
	}
}

// A connection that is lost just when disks are compared is no error of the job.
func TestConnectionLostWhileComparing(t *testing.T) {
	in(t, func(t *testing.T) {
		r := remotePlain(t, 1*mib)
		net := r.behindNetwork(time.Minute)
		m := r.start(Options{Mode: WriteBlocking, AutoFinalize: true})
		r.ready(m)
		net.stall()
		go func() {
			time.Sleep(time.Second)
			net.disconnect(false)
			net.unstall()
			net.reconnect(false)
		}()
		must(t, r.guest.WriteAt(bg, pattern(1, 4096), 8192, 0))
		time.Sleep(time.Second)
		var once atomic.Bool
		r.source.onRequest(func(c blocktest.Call) error {
			if c.Op == block.OpRead && r.guest.Gate().Closed() && once.CompareAndSwap(false, true) {
				net.disconnect(false)
				go func() {
					time.Sleep(10 * time.Second)
					net.reconnect(false)
				}()
			}
			return nil
		})
		must(t, m.job.Complete(nil))
		r.over(m)
		if m.job.Err() != nil || !once.Load() {
			t.Fatalf("the job ended with %v", m.job.Err())
		}
		r.same()
	})
}

// A completion that has to wait for a lost target and for the speed limit waits.
func TestConnectionLostAtCompletionWithSpeed(t *testing.T) {
	in(t, func(t *testing.T) {
		r := remotePlain(t, 1*mib)
		net := r.behindNetwork(time.Hour)
		m := r.start(Options{Mode: Background, AutoFinalize: true, Granularity: 4096})
		r.ready(m)
		must(t, m.job.SetSpeed(4096))
		must(t, r.guest.WriteAt(bg, pattern(1, 64*kib), 0, 0))
		time.Sleep(2 * time.Second)
		net.disconnect(false)
		must(t, m.job.Complete(nil))
		time.Sleep(time.Minute)
		net.reconnect(false)
		must(t, m.job.SetSpeed(0))
		r.over(m)
		r.same()
	})
}

// What the copy would do next waits for a lost target without a claim and outside the gate: guests write where it would, and
// the graph can be changed.
func TestNobodyWaitsForCopyToLostTarget(t *testing.T) {
	for _, mode := range []Mode{Background, WriteBlocking} {
		in(t, func(t *testing.T) {
			r := remotePlain(t, 1*mib)
			net := r.behindNetwork(time.Hour)
			m := r.start(Options{Mode: mode, AutoFinalize: true, Speed: 64 * kib})
			time.Sleep(2 * time.Second)
			net.disconnect(false)
			time.Sleep(10 * time.Second)
			began := time.Now()
			must(t, r.guest.WriteAt(bg, pattern(1, mib), 0, 0))
			must(t, r.guest.Flush(bg))
			must(t, r.graph.Change(bg, func(tx *block.Tx) error { return tx.Drain(bg, nil, r.sn) }))
			if took := time.Since(began); took > time.Second {
				t.Errorf("mode %v: a guest waited %v", mode, took)
			}
			net.reconnect(false)
			must(t, m.job.SetSpeed(0))
			r.ready(m)
			net.disconnect(false)
			must(t, r.guest.WriteAt(bg, pattern(2, mib), 0, 0))
			time.Sleep(time.Second) // the copy goes for it
			began = time.Now()
			must(t, r.guest.WriteAt(bg, pattern(3, 4096), 8192, 0))
			must(t, r.guest.Flush(bg))
			if took := time.Since(began); took > time.Second {
				t.Errorf("mode %v: a guest of a ready job waited %v", mode, took)
			}
			net.reconnect(false)
			must(t, m.job.Complete(nil))
			r.over(m)
			r.same()
			if n := r.events.failures(); n > 0 {
				t.Errorf("mode %v: %d errors of the job", mode, n)
			}
		})
	}
}

// I7: a flush may go to a new session, whose beginning has made dirty what was not flushed.
func TestFlushOfNewSessionDoesNotHideLoss(t *testing.T) {
	in(t, func(t *testing.T) {
		r := remotePlain(t, 1*mib)
		r.behindNetwork(time.Minute)
		m := r.start(Options{Mode: WriteBlocking, AutoFinalize: true})
		r.ready(m)
		must(t, r.guest.WriteAt(bg, pattern(1, 4096), 8192, 0))
		var once atomic.Bool
		r.target.onRequest(func(c blocktest.Call) error {
			if c.Op == block.OpFlush && once.CompareAndSwap(false, true) {
				// The new session began after the flush was asked for and before it was sent.
				r.target.lose()
				m.mu.Lock()
				m.planner.lost()
				m.mu.Unlock()
			}
			return nil
		})
		must(t, m.job.Complete(nil))
		r.over(m)
		r.same()
	})
}
