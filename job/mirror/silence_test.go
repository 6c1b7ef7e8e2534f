// SPDX-License-Identifier: Apache-2.0

package mirror

import (
	"context"
	"math/rand/v2"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/blocktest"
	"github.com/blkmirror/blkmirror/job"
)

// within wants f to take no longer than a guest may wait for the target.
func within(t *testing.T, what string, f func()) {
	t.Helper()
	began := time.Now()
	f()
	if took := time.Since(began); took > patience {
		t.Errorf("%s took %v", what, took)
	}
}

// promptly wants f to wait for nobody.
func promptly(t *testing.T, what string, f func()) {
	t.Helper()
	began := time.Now()
	f()
	if took := time.Since(began); took > 0 {
		t.Errorf("%s took %v", what, took)
	}
}

// silences has a mirror whose target fell silent: what a test does then, the target comes back after it, and the job ends well.
func silences(t *testing.T, o Options, f func(r *rig, m *Mirror, net *network)) {
	t.Helper()
	in(t, func(t *testing.T) {
		r := remotePlain(t, 4*mib)
		r.t = t
		net := r.behindNetwork(0)
		o.AutoFinalize = true
		m := r.start(o)
		f(r, m, net)
		time.Sleep(time.Minute)
		net.unstall()
		must(t, m.job.SetSpeed(0))
		r.ready(m)
		time.Sleep(10 * time.Second)
		if s := m.State(); s.Synced != (o.Mode == WriteBlocking) || s.Dirty != 0 {
			t.Errorf("long after the silence: %+v", s)
		}
		must(t, m.job.Complete(nil))
		r.over(m)
		if err := m.job.Err(); err != nil || r.events.failures() > 0 {
			t.Errorf("the job ended with %v, after %d errors", err, r.events.failures())
		}
		if r.guest.Node() != r.tn {
			t.Error("the guest was not given the target")
		}
		r.same()
	})
}

// A guest's request that is under way when the target falls silent waits for patience; those after it do not wait.
func TestSilentTargetHoldsUpNoGuest(t *testing.T) {
	for what, do := range map[string]func(r *rig) error{
		"write":  func(r *rig) error { return r.guest.WriteAt(bg, pattern(2, 70000), 12345, 0) },
		"FUA":    func(r *rig) error { return r.guest.WriteAt(bg, pattern(2, 4096), 8192, block.FUA) },
		"zeroes": func(r *rig) error { return r.guest.WriteZeroes(bg, 100000, mib, block.FUA) },
		"trim":   func(r *rig) error { return r.guest.Discard(bg, 65536, mib) },
		"flush":  func(r *rig) error { return r.guest.Flush(bg) },
	} {
		silences(t, Options{Mode: WriteBlocking}, func(r *rig, m *Mirror, net *network) {
			r.ready(m)
			must(t, r.guest.WriteAt(bg, pattern(3, 4096), 0, 0)) // something to flush
			net.stall()
			within(t, what, func() { must(t, do(r)) })
			if m.State().Synced {
				t.Errorf("%s: in sync with a target that is silent", what)
			}
			promptly(t, "all after a "+what, func() {
				must(t, r.guest.WriteAt(bg, pattern(4, 70000), 123, 0))
				must(t, r.guest.WriteAt(bg, pattern(5, 70000), 12345, block.FUA))
				must(t, r.guest.WriteZeroes(bg, 3*mib, 70000, 0))
				must(t, r.guest.Flush(bg))
			})
			time.Sleep(10 * time.Second)
			promptly(t, "a write long after a "+what, func() { must(t, r.guest.WriteAt(bg, pattern(6, 4096), 65536, 0)) })
		})
	}
}

// Guests that wait for claims: of the copy, and of each other.
func TestSilentTargetWhileClaimsAreWaitedFor(t *testing.T) {
	silences(t, Options{Mode: WriteBlocking, Speed: mib}, func(r *rig, m *Mirror, net *network) {
		for m.State().Bytes.Copied == 0 {
			time.Sleep(time.Millisecond)
		}
		net.stall()
		must(t, m.job.SetSpeed(0))
		time.Sleep(time.Second) // copies are under way everywhere
		var all sync.WaitGroup
		for i := range uint64(8) {
			all.Go(func() {
				within(t, "a write", func() { must(t, r.guest.WriteAt(bg, pattern(i+10, mib), int64(i)*400*kib, 0)) })
			})
		}
		all.Wait()
	})
	silences(t, Options{Mode: WriteBlocking}, func(r *rig, m *Mirror, net *network) {
		r.ready(m)
		net.stall()
		var all sync.WaitGroup
		for i := range uint64(8) {
			all.Go(func() {
				time.Sleep(time.Duration(i) * 300 * time.Millisecond)
				within(t, "a write", func() { must(t, r.guest.WriteAt(bg, pattern(i+10, 8192), int64(i)*4096, 0)) })
			})
		}
		all.Wait()
	})
}

// Whoever drains guests waits for patience at most, whatever the job is about; so does a pause.
func TestSilentTargetHoldsUpNoDrain(t *testing.T) {
	drain := func(r *rig) {
		within(t, "a drain", func() {
			must(t, r.graph.Change(bg, func(tx *block.Tx) error { return tx.Drain(bg, nil, r.sn) }))
		})
	}
	for _, mode := range []Mode{Background, WriteBlocking} {
		silences(t, Options{Mode: mode}, func(r *rig, m *Mirror, net *network) { // the first look
			net.stall()
			time.Sleep(10 * time.Second)
			drain(r)
			drain(r)
		})
		silences(t, Options{Mode: mode, Speed: mib}, func(r *rig, m *Mirror, net *network) { // copies
			time.Sleep(time.Second)
			net.stall()
			time.Sleep(10 * time.Second)
			drain(r)
			promptly(t, "a write", func() { must(t, r.guest.WriteAt(bg, pattern(9, mib), 0, 0)) })
			drain(r)
			must(t, m.job.Pause(nil))
			time.Sleep(patience + time.Second)
			if s := m.job.Info().Status; s != job.Paused {
				t.Errorf("after a pause the job is %v", s)
			}
			must(t, m.job.Resume(nil))
		})
		silences(t, Options{Mode: mode}, func(r *rig, m *Mirror, net *network) { // a flush
			var once sync.Once
			r.target.onRequest(func(c blocktest.Call) error {
				if c.Op == block.OpFlush {
					once.Do(net.stall)
				}
				return nil
			})
			time.Sleep(10 * time.Second)
			drain(r)
		})
	}
}

// Guests wait for patience at most when the target falls silent while a job completes, at each of its requests in the drained
// section; then the job goes on as before, and completes when the target is back.
func TestSilentTargetAtCompletion(t *testing.T) {
	for _, mode := range []Mode{Background, WriteBlocking} {
		for point, reached := 1, true; reached; point++ {
			in(t, func(t *testing.T) { reached = silentAtCompletion(t, mode, point) })
			if t.Failed() {
				t.Fatalf("at request %d in %v mode", point, mode)
			}
			if !reached && point < 2 {
				t.Errorf("only %d requests", point-1)
			}
		}
	}
}

func silentAtCompletion(t *testing.T, mode Mode, point int) (reached bool) {
	r := remotePlain(t, 4*mib)
	net := r.behindNetwork(0)
	m := r.start(Options{Mode: mode, AutoFinalize: true, Granularity: 4096})
	r.ready(m)
	net.mu.suspects = []span{{8192, 12288}} // something to compare
	must(t, r.guest.WriteAt(bg, pattern(9, 20000), 777, 0))
	n := 0
	r.target.onRequest(func(blocktest.Call) error {
		if r.guest.Gate().Closed() {
			if n++; n == point {
				reached = true
				net.stall()
			}
		}
		return nil
	})
	must(t, m.job.Complete(nil))
	wait := at(func() {
		for i := range uint64(100) {
			within(t, "a write", func() { must(t, r.guest.WriteAt(bg, pattern(i, 512), int64(i)*9999, 0)) })
			within(t, "a flush", func() { must(t, r.guest.Flush(bg)) })
			time.Sleep(100 * time.Millisecond)
		}
	})
	time.Sleep(30 * time.Second)
	wait()
	within(t, "a change of the graph", func() { must(t, r.graph.Change(bg, func(*block.Tx) error { return nil })) })
	if reached && r.guest.Node() == r.tn {
		t.Error("the job is over before the target is back")
	}
	net.unstall()
	r.over(m)
	if err := m.job.Err(); err != nil || r.guest.Node() != r.tn || r.events.failures() > 0 {
		t.Errorf("the job ended with %v, and %d errors", err, r.events.failures())
	}
	return reached
}

// A forced cancel waits for nothing, in whatever phase the target fell silent.
func TestForcedCancelOfMirrorToSilentTarget(t *testing.T) {
	for _, after := range []time.Duration{0, time.Second, time.Minute} {
		for _, mode := range []Mode{Background, WriteBlocking} {
			in(t, func(t *testing.T) {
				r := remotePlain(t, 4*mib)
				net := r.behindNetwork(time.Hour)
				m := r.start(Options{Mode: mode, AutoFinalize: true, Speed: mib})
				time.Sleep(after)
				net.stall()
				wait := at(func() { must(t, r.guest.WriteAt(bg, pattern(2, mib), 4096, 0)) })
				synctest.Wait()
				_ = m.job.SetSpeed(0)
				_ = m.job.Complete(nil)
				time.Sleep(time.Second)
				promptly(t, "the end", func() {
					must(t, m.job.Cancel(nil))
					wait()
					<-m.job.Done()
				})
				if r.guest.Node() != r.sn {
					t.Error("the guest was given the target")
				}
			})
		}
	}
}

// What a mirror that was cancelled gave up is no danger to the next one: of a session that lives it comes first, and of one that
// was lost the target still suspects it.
func TestNextMirrorKnowsWhatWasGivenUp(t *testing.T) {
	for _, lost := range []bool{false, true} {
		for _, sync := range []Sync{SyncFull, SyncNone} {
			in(t, func(t *testing.T) {
				r := remotePlain(t, 1*mib)
				net := r.behindNetwork(time.Minute)
				must(t, r.guest.WriteZeroes(bg, 0, mib, 0))
				m := r.start(Options{Mode: WriteBlocking, AutoFinalize: true})
				r.ready(m)
				net.stall()
				must(t, r.guest.WriteAt(bg, pattern(2, 65536), 65536, 0))
				must(t, r.guest.WriteZeroes(bg, 65536, 65536, 0))
				must(t, m.job.Cancel(nil))
				<-m.job.Done()
				var late []*exchange
				if lost {
					net.mu.random = rand.New(constant(1<<63 - 1)) // it is carried out, in an hour
					net.disconnect(false)
					net.unstall()
					net.reconnect(false)
					if late = net.pending(); len(late) == 0 {
						t.Fatal("nothing is late")
					}
				} else {
					time.AfterFunc(10*time.Second, net.unstall)
				}
				m = r.start(Options{JobID: "n", Mode: WriteBlocking, AutoFinalize: true, Sync: sync})
				r.ready(m)
				for _, x := range late {
					x.goOn()
					<-x.ended
				}
				must(t, m.job.Complete(nil))
				r.over(m)
				must(t, m.job.Err())
				if sync == SyncFull || lost {
					r.same()
				}
			})
		}
	}
}

// constant is a source that is none.
type constant uint64

func (c constant) Uint64() uint64 { return uint64(c) }

// A flush that was given up and failed lost what it had to make durable; the next one tells.
func TestFlushThatWasGivenUpFails(t *testing.T) {
	silences(t, Options{Mode: WriteBlocking, OnTargetError: job.PolicyIgnore}, func(r *rig, m *Mirror, net *network) {
		r.ready(m)
		must(t, r.guest.WriteAt(bg, pattern(3, mib), 4096, 0))
		r.target.lossy = true
		r.target.addFault(fault{op: block.OpFlush, errno: syscall.EIO, times: 1})
		net.stall()
		within(t, "a flush", func() { must(t, r.guest.Flush(bg)) })
		net.unstall()
		time.Sleep(10 * time.Second)
		if n := r.events.failures(); n != 1 {
			t.Errorf("%d errors", n)
		}
		r.events.mu.Lock()
		r.events.fails = 0
		r.events.mu.Unlock()
		must(t, r.guest.Flush(bg))
		if at := differAt(r.source.Bytes(), r.target.durable()); at >= 0 {
			t.Errorf("byte %d is not durable", at)
		}
	})
}

// A target that is slow is not silent: however slow the line is, the job gets ready and completes, and guests do not wait long.
func TestSlowLine(t *testing.T) {
	for _, rate := range []int64{64 * kib, 512 * kib, 2 * mib} { // bytes per second
		in(t, func(t *testing.T) {
			r := remotePlain(t, 8*mib)
			r.behindNetwork(0)
			line := make(chan struct{}, 1)
			r.target.onRequest(func(c blocktest.Call) error {
				if c.Op == block.OpWrite {
					line <- struct{}{}
					defer func() { <-line }()
					time.Sleep(time.Duration(c.Len) * time.Second / time.Duration(rate))
				}
				return nil
			})
			m := r.start(Options{Mode: WriteBlocking, AutoFinalize: true})
			ctx, stop := context.WithCancel(bg)
			wait := at(func() {
				for i := uint64(1); ctx.Err() == nil; i++ {
					within(t, "a write", func() { must(t, r.guest.WriteAt(bg, pattern(i, 4096), int64(i*7919*4096)%(8*mib), 0)) })
					time.Sleep(time.Second)
				}
			})
			r.readyWithin(m, 20*time.Minute)
			must(t, m.job.Complete(nil))
			select {
			case <-m.job.Done():
			case <-time.After(20 * time.Minute):
				t.Errorf("%d bytes per second: not over: %+v", rate, m.State())
				_ = m.job.Cancel(nil)
			}
			stop()
			wait()
			synctest.Wait()
			if m.job.Err() == nil {
				t.Logf("%d bytes per second: fell silent %d times", rate, m.planner.epoch)
			}
		})
	}
}

// What the planner decides while the target is silent.
func TestPlannerWhileSilent(t *testing.T) {
	b := newBench(t, WriteBlocking)
	b.setZ(0, 4)
	b.guest("a", reqData, chunk, 3*chunk)
	b.guest("b", reqData, 2*chunk+5, 4*chunk) // waits
	b.beginFlush()
	b.touch(5*chunk, chunk)
	b.fallSilent()
	b.giveUpFlush()
	if !b.unflushed(5*chunk, 1) || !b.unflushed(chunk, 1) || b.synced() {
		t.Error("a flush that was given up counts, or the target is in sync")
	}
	b.endGuest(b.ops["a"], false, true)
	b.expect("woken", b.woken(), "b")
	o := b.ops["b"]
	if o.target != (span{}) || !o.leaves || o.epoch != b.epoch {
		t.Errorf("what was granted in silence is %+v", o)
	}
	b.state("1 2 3", "0 3") // the target has no part of b
	if c := b.next(chunk); c == nil || c.off != chunk || c.epoch != b.epoch {
		t.Errorf("the copy does %+v", c)
	}
	b.endGuest(o, false, false)
	b.state("2 3", "0 3")
	if c := b.guest("c", reqData, chunk, 2*chunk); c.blocked > 0 || c.mode != Background || b.writers != 1 {
		t.Errorf("a write in silence waits: %+v", c)
	}
	b.endGuest(b.ops["c"], false, false)
	b.state("1 2 3", "0 3")
	b.silent = false
	if d := b.guest("d", reqData, 7*chunk, 8*chunk); d.mode != WriteBlocking || d.target.end == 0 {
		t.Errorf("a write after it: %+v", d)
	}
}
