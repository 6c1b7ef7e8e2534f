// SPDX-License-Identifier: Apache-2.0

package handlers

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/daemon/state"
	"github.com/blkmirror/blkmirror/job"
	"github.com/blkmirror/blkmirror/job/mirror"
	"github.com/blkmirror/blkmirror/job/mirror/intent"
	"github.com/blkmirror/blkmirror/job/verify"
)

// The commands that make jobs which a restart brings back; the state calls a mirror's "".
const (
	commandCommit = "block-commit"
	commandStream = "block-stream"
	commandVerify = "blockdev-verify"
)

// keptJob is a job that a restart brings back. What follows job belongs to who holds the graph, or to the command that starts it.
type keptJob struct {
	id string
	// describe says how the job would be made now. The graph is held.
	describe func(p *picture) (state.Job, error)

	job    *job.Job
	gone   bool // it was cancelled, or is at its end: it does not come back
	mute   bool // it was told that the job cannot come back
	still  *state.Job
	undone error // why a state could not be brought back when the job could not start
	size   int64 // of the disks

	// Of comparisons.
	verify  *verify.Verify
	disks   [2]string       // what they are in
	digest  bool            // it always starts from the beginning
	reached *state.Compared // when that was last recorded
	ill     bool            // it could not be when that was last tried; belongs to the job

	// Of mirrors and commits.
	mirror *mirror.Mirror
	log    *intent.Log
	flight *intent.Log // nil for a target that is here
	file   string      // the name of log's file
	second string      // that of flight's
}

// now is how a job is to come back.
func (k *keptJob) now(p *picture) (state.Job, error) {
	if k.still != nil {
		return *k.still, nil
	}
	j, err := k.describe(p)
	if err != nil {
		return j, err
	}
	w := k.job.Wanted()
	j.Paused, j.Finalize, j.Intent, j.Flight = w.Paused, w.Finalize, k.file, k.second
	switch {
	case w.Softly:
		j.Complete = state.CompleteSoft
	case w.Complete:
		j.Complete = state.CompleteFull
	}
	return j, nil
}

// addJobs adds the jobs that are to come back.
func (p *picture) addJobs(jobs []*keptJob) {
	for _, k := range jobs {
		if k.gone {
			continue
		}
		j, err := k.now(p)
		if err == nil {
			p.Jobs = append(p.Jobs, j)
		} else if !k.mute {
			k.mute = true
			p.trouble(fmt.Errorf("job '%s' will not come back after a restart: %w", k.id, err))
		}
	}
}

// keeps says whether jobs come back.
func (h *Handlers) keeps() bool { return h.kept.Dir != nil }

// startKept has start start a job. If that fails nothing is left of what is kept of it.
func (h *Handlers) startKept(k *keptJob, start func() error) error {
	err := start()
	if err != nil && h.keeps() {
		err = errors.Join(err, k.undone, k.close(), h.dropFiles(k))
	}
	return err
}

// inserted records a job before it holds.
func (h *Handlers) inserted(k *keptJob, tx *block.Tx) (err error) {
	if !h.keeps() {
		return nil
	}
	if k.job, err = h.jobs.Find(k.id); err != nil {
		return err
	}
	was := h.kept.known
	h.kept.known = h.knowledge() // the job may have made nodes writable
	h.kept.jobs = append(h.kept.jobs, k)
	tx.OnRollBack(func() {
		h.kept.known = was
		h.dropKept(k)
	})
	if !h.kept.on {
		return nil
	}
	return h.record(tx, nil, &k.undone)
}

func (h *Handlers) dropKept(k *keptJob) {
	h.kept.jobs = slices.DeleteFunc(h.kept.jobs, func(other *keptJob) bool { return other == k })
}

// finishing records that a job has done its work, before guests go on; v is what becomes of the graph then, nil if that is so
// already.
func (h *Handlers) finishing(k *keptJob, tx *block.Tx, v *pivot) error {
	k.gone = true
	tx.OnRollBack(func() { k.gone = false })
	if !h.kept.on {
		return nil
	}
	var undone error
	tx.OnRollBack(func() {
		if undone != nil {
			h.kept.Trouble(undone) // the job tells why it failed; this is worse
		}
	})
	return h.record(tx, v, &undone)
}

// endKept forgets a job that has ended, unless only the daemon has.
func (h *Handlers) endKept(k *keptJob) error {
	if !h.keeps() {
		return nil
	}
	var undone error
	recorded, stays := false, false
	err := h.graph.Change(context.Background(), func(tx *block.Tx) error {
		if stays = k.still != nil && !k.gone && (k.log == nil || k.log.Phase() < intent.Pivoted); stays {
			return nil
		}
		h.dropKept(k)
		if recorded = h.kept.on; !recorded {
			return nil
		}
		return h.record(tx, nil, &undone)
	})
	if stays {
		return nil
	}
	err = errors.Join(err, undone, k.close())
	switch {
	case err != nil:
		h.kept.Trouble(fmt.Errorf("job '%s' has ended: %w", k.id, err))
	case recorded: // else the state may name the files, which say that the job has ended
		return h.dropFiles(k)
	}
	return nil
}
