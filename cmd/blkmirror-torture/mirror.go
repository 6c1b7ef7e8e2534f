// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"time"
)

// convergeLimit is how long a mirror may take to become ready, or to end, once everything is well again. With on-target-error=ignore
// it may try only every five seconds.
const convergeLimit = 30 * time.Second

// patience is how long a mirror may take before it is helped.
const patience = 700 * time.Millisecond

// startMirror starts the mirror of the plan.
func (r *round) startMirror(ctx context.Context) error {
	if err := r.daemon.do(ctx, "blockdev-mirror", r.mirror, nil); err != nil {
		return err
	}
	r.started = true
	r.counts.add("mirrors started", 1)
	return nil
}

// ensure waits until there is a mirror, and a ready one if it is to be. It resumes a mirror that an error stopped, and starts
// another one in place of one that failed or did not survive.
func (r *round) ensure(ctx context.Context, ready bool) error {
	began := time.Now()
	err := until(ctx, convergeLimit, "the mirror is ready", func() (bool, error) {
		if err := r.guestError(); err != nil {
			return false, err
		}
		j, err := r.daemon.jobNamed(ctx, jobID)
		switch {
		case err != nil:
			return false, err
		case j == nil:
			if node, err := r.daemon.exported(ctx, exportID); err != nil || node != sourceNode {
				return false, fmt.Errorf("guests use '%s' and there is no mirror: %w", node, err)
			}
			if err := r.lostMirror(); err != nil {
				return false, err
			}
			return false, r.startMirror(ctx)
		case j.Paused && j.IOStatus != "ok":
			r.counts.add("mirrors resumed after an error", 1)
			_ = r.daemon.do(ctx, "job-resume", args{"id": jobID}, nil) // it may have ended just now
			return false, nil
		case !ready || j.Status == "ready":
			return true, nil
		case time.Since(began) > patience && !r.helped:
			return false, r.help(ctx)
		}
		return false, nil
	})
	if err != nil && r.daemon.seen("BLOCK_JOB_ERROR") > 0 {
		err = fmt.Errorf("%w (last error of the job: %s)", err, r.daemon.said("BLOCK_JOB_ERROR "+jobID))
	}
	return err
}

// help does what an operator does when guests write faster than a mirror may, or can, copy.
func (r *round) help(ctx context.Context) error {
	r.helped = true
	r.counts.add("mirrors helped to converge", 1)
	r.mirror["speed"], r.mirror["copy-mode"] = 0, "write-blocking" // of the next one, too
	_ = r.daemon.do(ctx, "block-job-set-speed", args{"device": jobID, "speed": 0}, nil)
	_ = r.daemon.do(ctx, "block-job-change", args{"id": jobID, "type": "mirror", "copy-mode": "write-blocking"}, nil)
	return nil // it may have ended just now
}

// lostMirror looks at why there is no mirror any more.
func (r *round) lostMirror() error {
	if !r.started {
		return nil // it did not survive the daemon
	}
	r.started = false
	why := r.daemon.said("BLOCK_JOB_COMPLETED " + jobID)
	if !r.excused {
		return fmt.Errorf("the mirror ended by itself: %s", why)
	}
	r.counts.add("mirrors that failed for a reason", 1)
	return nil
}

// cancelMirror ends the mirror, if there is one, and sees that the graph is as it was without it.
func (r *round) cancelMirror(ctx context.Context) error {
	j, err := r.daemon.jobNamed(ctx, jobID)
	if err != nil {
		return err
	}
	if j != nil {
		_ = r.daemon.do(ctx, "job-cancel", args{"id": jobID}, nil) // it may have ended just now
	}
	r.started = false
	if err := r.gone(ctx); err != nil {
		return err
	}
	return r.look(ctx)
}

// gone waits until there is no mirror.
func (r *round) gone(ctx context.Context) error {
	return until(ctx, convergeLimit, "the mirror has ended", func() (bool, error) {
		if err := r.guestError(); err != nil {
			return false, err
		}
		j, err := r.daemon.jobNamed(ctx, jobID)
		if j != nil && j.Paused && j.IOStatus != "ok" { // an error came in between
			_ = r.daemon.do(ctx, "job-resume", args{"id": jobID}, nil)
		}
		return j == nil, err
	})
}

// finishMirror ends the mirror as the plan says.
func (r *round) finishMirror(ctx context.Context) error {
	for range 10 { // errors of fault nodes come once each
		if err := r.ensure(ctx, true); err != nil {
			return err
		}
		if r.plan.end == endForce {
			r.counts.add("mirrors cancelled by force", 1)
			return r.cancelMirror(ctx)
		}
		if r.plan.end == endHeld {
			if err := r.hold(ctx); err != nil {
				return err
			}
		}
		done, err := r.tryFinish(ctx)
		for _, g := range r.guests {
			g.goOn()
		}
		if err != nil {
			return err
		}
		if done {
			r.counts.add("mirrors completed", 1)
			return r.look(ctx)
		}
	}
	return fmt.Errorf("the mirror failed again and again: %s", r.daemon.said("BLOCK_JOB_COMPLETED "+jobID))
}

// tryFinish completes the mirror, or ends it with a copy of that moment, and says whether it came to that.
func (r *round) tryFinish(ctx context.Context) (bool, error) {
	soft := r.plan.end == endSoft
	r.model.beginMark()
	completed := r.daemon.seen("BLOCK_JOB_COMPLETED " + jobID)
	command, a := "job-complete", args{"id": jobID}
	if soft {
		command, a = "block-job-cancel", args{"device": jobID}
	} else if r.server != nil {
		r.remote.Store(true)
	}
	if err := r.daemon.do(ctx, command, a, nil); err != nil {
		if r.excused {
			return false, nil // it was stopped, or has failed, just now
		}
		return false, err
	}
	if r.plan.end == endKill {
		if err := sleep(ctx, r.killAfter); err != nil {
			return false, err
		}
		r.plan.end = endComplete // once is enough
		r.counts.fault(killCompleting, 1)
		r.daemon.kill()
		return r.afterKill(ctx)
	}
	if err := r.gone(ctx); err != nil {
		return false, err
	}
	node, err := r.daemon.exported(ctx, exportID)
	if err != nil {
		return false, err
	}
	if err := until(ctx, commandLimit, "the end of the job is told", func() (bool, error) {
		return r.daemon.seen("BLOCK_JOB_COMPLETED "+jobID) > completed, nil
	}); err != nil {
		return false, err
	}
	switch why := r.daemon.said("BLOCK_JOB_COMPLETED " + jobID); {
	case why == "" && soft && node == sourceNode:
		r.copied = true
		return true, nil
	case why == "" && !soft && node == targetNode:
		r.pivoted()
		return true, nil
	case why != "" && r.excused && node == sourceNode:
		r.started = false
		r.counts.add("mirrors that failed for a reason", 1)
		return false, nil
	default:
		return false, fmt.Errorf("the mirror ended with '%s', and guests use '%s'", why, node)
	}
}

// afterKill starts the daemon again, finds out which disk its guests have now, either, but one of them, and waits for the mirror to complete
// if it has not.
func (r *round) afterKill(ctx context.Context) (bool, error) {
	if err := r.daemon.start(ctx); err != nil {
		return false, fmt.Errorf("it was started again: %w", err)
	}
	node, err := r.daemon.exported(ctx, exportID)
	if err != nil {
		return false, err
	}
	if r.started = false; node == targetNode {
		r.pivoted()
		r.counts.add("kills that found the pivot done", 1)
		return true, r.look(ctx)
	}
	if r.server == nil {
		r.model.close()
	}
	// It was asked to complete, and does so without being asked again.
	r.model.beginMark()
	if j, err := r.daemon.jobNamed(ctx, jobID); err != nil {
		return false, err
	} else if j != nil {
		r.counts.add("mirrors that went on after a restart", 1)
		if err := r.help(ctx); err != nil {
			return false, err
		}
	}
	if err := r.gone(ctx); err != nil {
		return false, err
	}
	if node, err = r.daemon.exported(ctx, exportID); err != nil {
		return false, err
	}
	switch {
	case node == targetNode:
		r.pivoted()
		return true, r.look(ctx)
	case r.excused:
		r.counts.add("mirrors that failed for a reason", 1)
		return false, r.look(ctx)
	}
	return false, fmt.Errorf("the mirror had been asked to complete when the daemon was killed, and guests still use '%s': %s", node,
		r.daemon.said("BLOCK_JOB_COMPLETED "+jobID))
}
