// SPDX-License-Identifier: Apache-2.0

package mirror

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/job"
)

// holdGraph holds the graph until release, and drains the source too if told so.
func (r *rig) holdGraph(drain bool) (release func()) {
	let := make(chan struct{})
	wait := at(func() {
		must(r.t, r.graph.Change(bg, func(tx *block.Tx) error {
			if drain {
				must(r.t, tx.Drain(bg, nil, r.sn))
			}
			<-let
			return nil
		}))
	})
	synctest.Wait()
	return func() {
		close(let)
		wait()
	}
}

// paused pauses a job that waits for others, and lets it go on when they have gone if late is set, else before.
func (r *rig) paused(m *Mirror, release func(), late bool) {
	r.t.Helper()
	synctest.Wait()
	before := m.job.Info().Status
	must(r.t, m.job.Pause(nil))
	time.Sleep(time.Second)
	held := map[job.Status]job.Status{job.Running: job.Paused, job.Ready: job.Standby}[before]
	if s := m.job.Info().Status; s != held {
		r.t.Errorf("the job is %s while it waits for others, not %s", s, held)
	}
	if late {
		release()
		must(r.t, r.guest.WriteAt(bg, pattern(3, 70000), 12345, 0))
	}
	must(r.t, m.job.Resume(nil))
	time.Sleep(time.Second)
	if !late {
		if s := m.job.Info().Status; s != before {
			r.t.Errorf("the job that was resumed is %s, not %s", s, before)
		}
		release()
	}
}

// A job pauses while others hold what it waits for, in whatever phase it is, and looks again at what is dirty when it goes on.
func TestPauseWhileOthersHoldTheGraph(t *testing.T) {
	for _, late := range []bool{false, true} {
		run := func(what string, f func(t *testing.T, r *rig)) {
			t.Run(what, func(t *testing.T) {
				in(t, func(t *testing.T) { f(t, plain(t, 1*mib)) })
			})
		}
		finish := func(r *rig, m *Mirror) {
			r.ready(m)
			must(r.t, m.job.Complete(nil))
			r.over(m)
			if err := m.job.Err(); err != nil {
				r.t.Errorf("the job ended with %v", err)
			}
			r.same()
		}
		for _, sync := range []Sync{SyncFull, SyncTop} {
			run("at the first look", func(t *testing.T, r *rig) {
				r.source.slow, r.target.slow = time.Second, time.Second
				m := r.start(Options{AutoFinalize: true, Sync: sync})
				r.paused(m, r.holdGraph(true), late)
				finish(r, m)
			})
		}
		run("at a copy", func(t *testing.T, r *rig) {
			m := r.start(Options{AutoFinalize: true})
			r.ready(m)
			must(t, r.guest.WriteAt(bg, pattern(2, 4096), 0, 0)) // copied a little later
			r.paused(m, r.holdGraph(true), late)
			finish(r, m)
		})
		run("at a flush", func(t *testing.T, r *rig) {
			m := r.start(Options{})
			r.ready(m)
			release := r.holdGraph(true)
			must(t, m.job.Complete(nil))
			r.paused(m, release, late)
			time.Sleep(time.Second)
			must(t, m.job.Finalize(nil))
			r.over(m)
			r.same()
		})
		run("at the end", func(t *testing.T, r *rig) {
			m := r.start(Options{AutoFinalize: true})
			r.ready(m)
			release := r.holdGraph(false)
			must(t, m.job.Complete(nil))
			r.paused(m, release, late)
			r.over(m)
			r.same()
		})
		run("at the drain", func(t *testing.T, r *rig) {
			m := r.start(Options{AutoFinalize: true})
			r.ready(m)
			must(t, r.guest.Gate().Enter(bg)) // a request that takes its time
			must(t, m.job.Complete(nil))
			r.paused(m, r.guest.Gate().Leave, late)
			r.over(m)
			r.same()
		})
	}
}
