// SPDX-License-Identifier: Apache-2.0

package job

import (
	"context"

	"github.com/blkmirror/blkmirror/block"
)

// The calls of this file are for the body, from the goroutine of the job.

// PauseWanted says whether the body should bring what is in flight to its end and call Checkpoint.
func (j *Job) PauseWanted() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.mu.paused
}

// Checkpoint holds the job while the operator or an error wants it paused. Nothing of it may be in flight. It returns an
// error when the job is cancelled.
func (j *Job) Checkpoint(ctx context.Context) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	for j.mu.paused && ctx.Err() == nil {
		held, back := Paused, Running
		if j.mu.status == Ready {
			held, back = Standby, Ready
		}
		j.mu.busy = false
		j.moveLocked(held)
		for j.mu.paused && ctx.Err() == nil {
			resumed := make(chan struct{})
			j.mu.resumed = resumed
			j.mu.Unlock()
			select {
			case <-resumed:
			case <-ctx.Done():
			}
			j.mu.Lock()
		}
		j.moveLocked(back)
	}
	return context.Cause(ctx)
}

// WasStopped says whether an error caused the pause before; it says so once.
func (j *Job) WasStopped() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	stopped := j.mu.stopped
	j.mu.stopped = false
	return stopped
}

// Ready says that the job has caught up and from now on keeps up until it is completed.
func (j *Job) Ready() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.mu.busy = false
	j.moveLocked(Ready)
	j.registry.events.BecameReady(j.infoLocked())
}

// IsReady says whether Ready was called.
func (j *Job) IsReady() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.mu.status == Ready || j.mu.status == Standby
}

// CompleteWanted says whether the operator wants the job to end well, and whether softly: without what it is for. A job that goes on
// where another one was has to be ready again before.
func (j *Job) CompleteWanted() (wanted, soft bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if !j.mu.armed || j.mu.paused || j.mu.status == Running {
		return false, false
	}
	return j.mu.completes != completeNot, j.mu.completes == completeSoft
}

// EnterPending says that the work is done. With auto-finalize the body goes on at once; else FinalizeWanted tells when. It
// is refused if the operator wants the job paused by now: the body goes to its Checkpoint then.
func (j *Job) EnterPending() (ok bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.mu.paused {
		return false
	}
	j.mu.busy = false
	j.moveLocked(Waiting)
	j.moveLocked(Pending)
	if !j.config.AutoFinalize && j.config.BlockJob {
		j.registry.events.BecamePending(j.infoLocked())
	}
	return true
}

// AutoFinalize says whether the job ends without the operator's finalize.
func (j *Job) AutoFinalize() bool { return j.config.AutoFinalize }

// FinalizeWanted says whether a pending job shall end now.
func (j *Job) FinalizeWanted() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.config.AutoFinalize || j.mu.finalize
}

// Commit is the point of no return: it fails if the job was cancelled, and no cancel is accepted after it.
func (j *Job) Commit() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.mu.cancelled {
		return ErrCancelled
	}
	j.mu.committed = true
	return nil
}

// Report tells of a failed request and does what its action says about the state: a stop pauses the job.
func (j *Job) Report(f Failure) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.registry.events.Failed(j.config.ID, f)
	if f.Action == ActionStop {
		j.mu.paused, j.mu.stopped = true, true
		j.mu.ioStatus = IOFailed
		if block.KindOf(f.Err) == block.KindNoSpace {
			j.mu.ioStatus = IONoSpace
		}
	}
	j.Poke()
}
