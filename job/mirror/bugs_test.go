// SPDX-License-Identifier: Apache-2.0

package mirror

import (
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/blocktest"
	"github.com/blkmirror/blkmirror/job"
)

func TestPlain(t *testing.T) {
	for _, mode := range []Mode{Background, WriteBlocking} {
		in(t, func(t *testing.T) {
			r := plain(t, 3*mib)
			m := r.start(Options{Mode: mode, AutoFinalize: true})
			r.ready(m)
			must(t, r.guest.WriteAt(bg, pattern(7, 12345), 777, 0))
			must(t, m.job.Complete(nil))
			r.over(m)
			r.same()
			if r.guest.Node() != r.tn {
				t.Error("the guest was not given the target")
			}
		})
	}
}

// A write that was under way while the target was flushed is not durable by that flush: the next one must not be skipped.
func TestWriteUnderWayDuringFlushIsFlushedLater(t *testing.T) {
	in(t, func(t *testing.T) {
		r := plain(t, 1*mib)
		m := r.start(Options{Mode: WriteBlocking, AutoFinalize: true})
		r.ready(m)
		r.target.onRequest(func(c blocktest.Call) error {
			if c.Op == block.OpWrite {
				time.Sleep(time.Second)
			}
			return nil
		})
		written := at(func() { must(t, r.guest.WriteAt(bg, pattern(7, 4096), 0, 0)) })
		synctest.Wait()
		must(t, r.guest.Flush(bg))
		written()
		must(t, r.guest.Flush(bg))
		if at := differAt(r.target.mem.DurableBytes(), r.source.Bytes()); at >= 0 {
			t.Errorf("after the guest's flush the target is not durable at %d", at)
		}
		must(t, m.job.Complete(nil))
		r.over(m)
		if at := differAt(r.target.mem.DurableBytes(), r.target.Bytes()); at >= 0 {
			t.Errorf("after the pivot the target is not durable at %d", at)
		}
	})
}

// Zeroes that were being written while a flush failed are not known to be on the target.
func TestZeroesUnderWayDuringFailedFlushAreNotTrusted(t *testing.T) {
	in(t, func(t *testing.T) {
		r := plain(t, 1*mib)
		r.target.lossy = true
		m := r.start(Options{Mode: WriteBlocking, AutoFinalize: true, OnTargetError: job.PolicyIgnore})
		r.ready(m)
		must(t, r.guest.WriteAt(bg, pattern(9, 4096), 512*kib, 0)) // something to flush
		r.target.slow = 0
		hold := make(chan struct{})
		landed := make(chan struct{})
		r.target.onZeroed(func() { close(landed); <-hold })
		written := at(func() { must(t, r.guest.WriteZeroes(bg, 0, 64*kib, 0)) })
		<-landed
		r.target.addFault(fault{op: block.OpFlush, errno: syscall.EIO, times: 1})
		must(t, r.guest.Flush(bg))
		close(hold)
		written()
		r.target.onZeroed(nil)
		time.Sleep(time.Second)
		r.same()
		must(t, m.job.Complete(nil))
		r.over(m)
		r.same()
	})
}

// A write of zeroes with FUA, of which the target has a part already but not durably.
func TestFUAZeroesSkippedInPartAreDurable(t *testing.T) {
	in(t, func(t *testing.T) {
		r := plain(t, 4*mib)
		m := r.start(Options{Mode: WriteBlocking, AutoFinalize: true, Granularity: 64 * kib})
		r.ready(m)
		must(t, r.guest.WriteZeroes(bg, 0, 64*kib, 0))
		must(t, r.guest.WriteZeroes(bg, 0, 128*kib, block.FUA))
		if !block.IsZero(r.target.mem.DurableBytes()[:128*kib]) {
			t.Error("acknowledged FUA zeroes are not durable on the target")
		}
		must(t, m.job.Cancel(nil))
		r.over(m)
	})
}

// The copy's search ends when all that is dirty, at the end of the disk, is held by a guest.
func TestSearchEndsWhenLastChunkIsBusy(t *testing.T) {
	in(t, func(t *testing.T) {
		r := plain(t, 64*kib)
		m := r.start(Options{Mode: WriteBlocking, AutoFinalize: true, OnSourceError: job.PolicyIgnore})
		r.ready(m)
		r.source.addFault(fault{op: block.OpWrite, errno: syscall.EIO, times: 1})
		if r.guest.WriteAt(bg, pattern(5, 512), 0, 0) == nil {
			t.Fatal("the write did not fail")
		}
		// The chunk is dirty now. A guest holds it before the copy can.
		r.source.onRequest(func(c blocktest.Call) error {
			if c.Op == block.OpWrite {
				time.Sleep(time.Second)
			}
			return nil
		})
		must(t, r.guest.WriteAt(bg, pattern(5, 512), 0, 0))
		time.Sleep(time.Second)
		must(t, m.job.Complete(nil))
		r.over(m)
		r.same()
	})
}

// A target that keeps failing under the policy ignore is tried again after a while, not at once, at completion too.
func TestIgnoreWaitsAtCompletion(t *testing.T) {
	in(t, func(t *testing.T) {
		r := plain(t, 1*mib)
		m := r.start(Options{Mode: Background, AutoFinalize: true, OnTargetError: job.PolicyIgnore})
		r.ready(m)
		must(t, r.guest.WriteAt(bg, pattern(5, 512), 0, 0))
		r.target.onRequest(func(c blocktest.Call) error {
			if c.Op == block.OpWrite {
				time.Sleep(time.Millisecond)
				return syscall.EIO
			}
			return nil
		})
		must(t, m.job.Complete(nil))
		time.Sleep(10 * time.Second)
		if n := r.events.failures(); n > 20 {
			t.Errorf("%d failed requests in 10 s", n)
		}
		must(t, m.job.Cancel(nil))
		r.over(m)
	})
}

// After a failure that the policy ignores the job goes on by itself, also when a guest's write has made good what failed.
func TestGoesOnAfterIgnoredFailureThatAGuestMadeGood(t *testing.T) {
	in(t, func(t *testing.T) {
		r := plain(t, 1*mib)
		m := r.start(Options{Mode: WriteBlocking, AutoFinalize: true, OnTargetError: job.PolicyIgnore})
		r.ready(m)
		r.target.addFault(fault{op: block.OpWrite, errno: syscall.EIO, times: 1})
		must(t, r.guest.WriteAt(bg, pattern(5, 64*kib), 0, 0))
		synctest.Wait()
		must(t, r.guest.WriteAt(bg, pattern(6, 64*kib), 0, 0))
		must(t, m.job.Complete(nil))
		r.over(m)
		r.same()
	})
}

// A soft cancel in the moment after a resume is a soft one.
func TestSoftCancelRightAfterResume(t *testing.T) {
	in(t, func(t *testing.T) {
		r := plain(t, 1*mib)
		m := r.start(Options{Mode: Background, AutoFinalize: true})
		r.ready(m)
		must(t, m.job.Pause(nil))
		synctest.Wait()
		var effect func()
		must(t, m.job.Resume(func(f func()) { effect = f }))
		must(t, m.job.SoftCancel(false, nil))
		effect()
		r.over(m)
		if got := r.events.of("m"); m.job.Err() != nil {
			t.Errorf("a soft cancel of a ready job ended it with %v: %s", m.job.Err(), got)
		}
	})
}

// Two guests that take turns on a chunk which is dirty must not keep the copy from it for ever.
func TestHotChunkDoesNotStarveTheCopy(t *testing.T) {
	for _, ending := range []string{"ready", "complete"} {
		in(t, func(t *testing.T) {
			r := plain(t, 256*kib)
			r.source.onRequest(func(c blocktest.Call) error {
				if c.Op == block.OpWrite {
					time.Sleep(time.Millisecond)
				}
				return nil
			})
			stop := make(chan struct{})
			hammer := func() {
				for i := uint64(0); ; i++ {
					select {
					case <-stop:
						return
					default:
						must(t, r.guest.WriteAt(bg, pattern(i, 512), 70000, 0))
						time.Sleep(time.Microsecond)
					}
				}
			}
			waits := []func(){at(hammer), at(hammer), at(hammer)}
			m := r.start(Options{Mode: WriteBlocking, AutoFinalize: true})
			r.ready(m)
			if ending == "complete" {
				must(t, m.job.Complete(nil))
			} else {
				must(t, m.job.Cancel(nil))
			}
			r.over(m)
			close(stop)
			for _, wait := range waits {
				wait()
			}
		})
	}
}

// A pause that is accepted while the last flush runs holds the job before pending, not in it.
func TestPauseDuringLastFlush(t *testing.T) {
	for _, auto := range []bool{false, true} {
		in(t, func(t *testing.T) {
			r := plain(t, 1*mib)
			m := r.start(Options{Mode: WriteBlocking, AutoFinalize: auto})
			r.ready(m)
			must(t, r.guest.WriteAt(bg, pattern(5, 512), 0, 0))
			hold, reached := make(chan struct{}), make(chan struct{}, 10)
			r.target.onRequest(func(c blocktest.Call) error {
				if c.Op == block.OpFlush {
					reached <- struct{}{}
					<-hold
				}
				return nil
			})
			must(t, m.job.SoftCancel(false, nil))
			<-reached
			must(t, m.job.Pause(nil))
			close(hold)
			time.Sleep(time.Second)
			if s := m.job.Info().Status; s != job.Standby {
				t.Fatalf("a paused job is %s: %s", s, r.events.of("m"))
			}
			must(t, m.job.Resume(nil))
			time.Sleep(time.Second)
			if !auto {
				must(t, m.job.Finalize(nil))
			}
			r.over(m)
			if m.job.Err() != nil || r.guest.Node() != r.sn {
				t.Errorf("a soft cancel ended with %v, the guest on '%s'", m.job.Err(), r.guest.Node().Name())
			}
		})
	}
}

// A target that reads as zero because it was zeroed a moment ago may not be durably so. Its first flush must not be left
// out because the mirror has written nothing.
func TestZeroesOfEarlierUsersAreFlushed(t *testing.T) {
	in(t, func(t *testing.T) {
		size := int64(1 * mib)
		r := newRig(t, newDisk(1, nil, blocktest.MemOptions{Size: size}), newDisk(2, pattern(1, size), blocktest.MemOptions{}), unmapping, unmapping)
		user := blocktest.Attach(t, r.graph, r.tn, "earlier", block.PermWrite, block.PermAll)
		must(t, user.WriteZeroes(bg, 0, size, block.MayUnmap))
		blocktest.Detach(t, r.graph, user)
		m := r.start(Options{Mode: WriteBlocking, AutoFinalize: true})
		r.ready(m)
		must(t, m.job.Complete(nil))
		r.over(m)
		if !block.IsZero(r.target.mem.DurableBytes()) {
			t.Error("after the pivot, the target is not durably zero")
		}
	})
}

// A write that makes a dirty chunk clean is under way: the target lacks what an earlier write got an answer for, so it is not
// in sync until the write has ended.
func TestNotSyncedWhileAWriteCatchesUp(t *testing.T) {
	b := newBench(t, WriteBlocking)
	b.setD(2, 3)
	o := b.guest("a", reqData, 2*chunk, 3*chunk)
	if b.state("", ""); b.synced() {
		t.Error("in sync while a dirty chunk is on its way")
	}
	if later := b.guest("b", reqData, 0, 10); later.durable {
		t.Error("a write counts as made in sync")
	} else {
		b.endGuest(later, false, false)
	}
	b.endGuest(o, false, false)
	if !b.synced() {
		t.Error("not in sync at the end")
	}
}

// A guest whose write makes the last dirty chunk clean wakes the job: it is ready then, and has nothing left.
func TestGuestMakesTheLastDirtyChunkClean(t *testing.T) {
	in(t, func(t *testing.T) {
		r := plain(t, 128*kib)
		m := r.start(Options{Mode: WriteBlocking, AutoFinalize: true, Speed: 64, BufSize: 1})
		time.Sleep(1200 * time.Millisecond)
		if d := m.State().Dirty; d != 64*kib {
			t.Fatalf("%d bytes are dirty", d)
		}
		must(t, r.guest.WriteAt(bg, pattern(5, 128*kib), 0, 0))
		time.Sleep(time.Millisecond)
		if i := m.job.Info(); i.Status != job.Ready || i.Current != i.Total {
			t.Errorf("%+v", i)
		}
		must(t, m.job.Cancel(nil))
		r.over(m)
	})
}

// What a guest's write adds to the work is counted once, also when it was granted by the end of a copy and the job counts
// anew before the guest's goroutine runs.
func TestProgressOfAGrantedWriteIsCountedOnce(t *testing.T) {
	in(t, func(t *testing.T) {
		r := plain(t, 64*kib)
		m := r.start(Options{Mode: WriteBlocking, AutoFinalize: true})
		r.ready(m)
		f := m.filter
		first, err := f.begin(bg, reqData, 0, 64*kib)
		must(t, err)
		done := at(func() {
			second, err := f.begin(bg, reqData, 0, 64*kib)
			must(t, err)
			_ = f.end(second, nil, nil)
		})
		synctest.Wait()
		m.mu.Lock() // the second stays where it is when it is granted
		_, _ = m.planner.endGuest(first, false, false)
		m.progress.Done(64 * kib)
		woken := m.takeWokenLocked()
		m.progress.SetRemaining(m.planner.left())
		m.mu.Unlock()
		wake(woken)
		done()
		if i := m.job.Info(); i.Current != i.Total {
			t.Errorf("progress %d of %d", i.Current, i.Total)
		}
		must(t, m.job.Cancel(nil))
		r.over(m)
	})
}

// What a discard leaves as data on the source may be zero all the same. Where the target looks for zeroes, the mirror finds
// that out, too, and skips what the target has.
func TestZeroDataAfterDiscardIsSkipped(t *testing.T) {
	for _, detect := range []block.DetectZeroes{block.DetectZeroesOn, block.DetectZeroesUnmap} {
		in(t, func(t *testing.T) {
			const size = 2*mib + 512
			source := newDisk(1, nil, blocktest.MemOptions{Size: size, NoStatus: true, OnDiscard: blocktest.DiscardZeroes})
			target := newDisk(2, nil, blocktest.MemOptions{Size: size})
			r := newRig(t, source, target, unmapping, block.Options{DetectZeroes: detect})
			m := r.start(Options{Mode: WriteBlocking, AutoFinalize: true, Granularity: 4 * kib})
			r.ready(m)
			must(t, r.guest.WriteAt(bg, pattern(1, 4096), 1*mib, 0))
			before := target.changes()
			for _, s := range []span{{0, 1 * mib}, {5, 10000}, {1*mib + 4096, size}, {size - 700, size}} {
				must(t, r.guest.Discard(bg, s.off, s.end-s.off))
			}
			if n := target.changes() - before; n != 0 {
				t.Errorf("%d requests changed the target", n)
			}
			m.mu.Lock()
			known := m.planner.z.Count(m.planner.z.All())
			all := m.planner.z.All().End
			m.mu.Unlock()
			if known != all-1 {
				t.Errorf("%d of %d chunks are known to be zero", known, all)
			}
			must(t, r.guest.Discard(bg, 0, size)) // one chunk of it has to be zeroed
			if n := target.changes() - before; n != 1 {
				t.Errorf("%d requests changed the target", n)
			}
			must(t, m.job.Complete(nil))
			r.over(m)
			r.same()
		})
	}
}
