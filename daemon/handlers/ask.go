// SPDX-License-Identifier: Apache-2.0

package handlers

import (
	"context"
	"time"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/job"
)

// keptOf finds what is kept of a job, nil if nothing is. The graph is held.
func (h *Handlers) keptOf(j *job.Job) *keptJob {
	for _, k := range h.kept.jobs {
		if k.job == j {
			return k
		}
	}
	return nil
}

// noteJob records what a verb changed of a job; undo takes it back if that is not possible.
func (h *Handlers) noteJob(ctx context.Context, j *job.Job, undo func()) error {
	if !j.Info().BlockJob {
		return nil // jobs of other types do not come back
	}
	return h.note(ctx, undo)
}

// cancelWait is how long a cancel waits for the graph, which the job itself may hold for as long as it is not cancelled.
const cancelWait = time.Second

// ask runs a verb that asks a job to end in some way, and records that before the answer. If it cannot be recorded the job does
// nothing. forced says whether the job was cancelled, so that it does not come back.
func (h *Handlers) ask(ctx context.Context, j *job.Job, verb func(job.After) error, forced func() bool) error {
	was, refused := j.Wanted(), false
	err := verb(func(f func()) {
		after(ctx)(func() {
			if !refused {
				f()
			}
		})
	})
	if err != nil || !h.kept.on || !j.Info().BlockJob {
		return err
	}
	gone, begun := forced(), false
	if gone {
		var stop context.CancelFunc
		ctx, stop = context.WithTimeout(ctx, cancelWait)
		defer stop()
	}
	err = h.change(ctx, func(tx *block.Tx) error {
		begun = true
		if k := h.keptOf(j); k != nil && gone && !k.gone {
			k.gone = true
			tx.OnRollBack(func() { k.gone = false })
		}
		return nil
	})
	if err == nil || gone && !begun {
		return nil // it is recorded, or will be when the job has ended
	}
	refused = true
	j.TakeBack(was)
	return err
}
