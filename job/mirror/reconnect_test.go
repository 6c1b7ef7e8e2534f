// SPDX-License-Identifier: Apache-2.0

package mirror

import (
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"

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
