// SPDX-License-Identifier: Apache-2.0

package handlers

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/bitmap"
	"github.com/blkmirror/blkmirror/daemon/state"
	"github.com/blkmirror/blkmirror/job"
	"github.com/blkmirror/blkmirror/job/mirror"
	"github.com/blkmirror/blkmirror/job/mirror/intent"
	"github.com/blkmirror/blkmirror/qmp"
	"github.com/blkmirror/blkmirror/qmp/api"
)

// keptMirror is a mirror that a restart brings back, with an intent file of its own.
type keptMirror struct {
	args   *api.BlockdevMirrorArguments // as given
	log    *intent.Log
	file   string // the name of its intent file
	size   int64  // of the disks
	job    *job.Job
	mirror *mirror.Mirror
	still  *state.Job // how it is to come back when the daemon ends; nil before
}

// startKept starts a mirror that is kept: one that begins, or, with what was found in its last intent file, one that goes on.
func (h *Handlers) startKept(ctx context.Context, a *api.BlockdevMirrorArguments, o mirror.Options, found *intent.Found) error {
	k := &keptMirror{args: a, size: o.Source.Size()}
	expect, err := identify(o.Source.FileName(), o.Target.FileName(), k.size, o.Target.Size())
	if err != nil {
		return err
	}
	dir := h.kept.Dir
	if k.file, err = dir.NewIntent(); err != nil {
		return err
	}
	path, err := dir.IntentPath(k.file)
	if err != nil {
		return err
	}
	phase, dirty := intent.Scanning, (*bitmap.Bitmap)(nil)
	if found != nil && found.Dirty != nil {
		phase, dirty = intent.Copying, found.Dirty
	}
	c := intent.Config{Size: k.size, Granularity: 512, Durability: h.kept.Durability, Boot: expect.Boot, Source: expect.Source,
		Target: expect.Target, Unflushed: o.Target.Reconnects()}
	if k.log, err = intent.CreateFile(path, c, phase, dirty); err != nil {
		return err
	}
	var undone error
	err = dir.Sync()
	if err == nil {
		o.Intent = k.log
		o.OnPivot = h.recordPivot(&pivot{from: o.Source, to: o.Target, mirror: k})
		o.OnInsert = func(_ context.Context, m *mirror.Mirror, tx *block.Tx) error {
			return h.keepInserted(k, m, tx, &undone)
		}
		o.OnEnd = func(bool) error { return h.endKept(k) }
		o.OnTrouble = func(err error) { h.intentTrouble(o.JobID, err) }
		_, err = mirror.Start(ctx, h.graph, h.jobs, o, after(ctx))
	}
	if err != nil {
		return errors.Join(err, undone, k.log.Close(), os.Remove(path))
	}
	return nil
}

// identify says who the disks are and when this is.
func identify(source, target string, sourceSize, targetSize int64) (e intent.Expect, err error) {
	if e.Boot, err = intent.BootID(); err != nil {
		return e, err
	}
	if e.Source, err = intent.Identify(source, sourceSize); err != nil {
		return e, err
	}
	e.Target, err = intent.Identify(target, targetSize)
	return e, err
}

// keepInserted records a mirror before it holds.
func (h *Handlers) keepInserted(k *keptMirror, m *mirror.Mirror, tx *block.Tx, undone *error) (err error) {
	if k.job, err = h.jobs.Find(*k.args.JobID); err != nil {
		return err
	}
	k.mirror = m
	h.kept.mirrors = append(h.kept.mirrors, k)
	tx.OnRollBack(func() { h.dropKept(k) })
	if !h.kept.on {
		return nil
	}
	return h.record(tx, nil, undone)
}

func (h *Handlers) dropKept(k *keptMirror) {
	h.kept.mirrors = slices.DeleteFunc(h.kept.mirrors, func(other *keptMirror) bool { return other == k })
}

// endKept forgets a mirror that has ended, unless only the daemon has.
func (h *Handlers) endKept(k *keptMirror) error {
	if k.log.Kept() && k.log.Phase() < intent.Pivoted {
		return nil
	}
	var undone error
	err := h.graph.Change(context.Background(), func(tx *block.Tx) error {
		h.dropKept(k)
		if !h.kept.on {
			return nil
		}
		return h.record(tx, nil, &undone)
	})
	err = errors.Join(err, undone, k.log.Close())
	if err != nil { // the file says that the mirror has ended, so it has to stay as long as the state names it
		h.kept.Trouble(fmt.Errorf("job '%s' has ended: %w", *k.args.JobID, err))
		return nil
	}
	return h.kept.Dir.DropIntent(k.file)
}

// intentTrouble tells that an intent file could not be written.
func (h *Handlers) intentTrouble(id string, err error) {
	h.kept.Trouble(fmt.Errorf("job '%s': %w", id, err))
	text := err.Error()
	h.config.Emit(&api.BlockJobErrorEvent{Device: id, Operation: api.IoOperationTypeWrite, Action: api.BlockErrorActionIgnore,
		Errno: &text})
}

// addJobs adds the mirrors that are to come back.
func (p *picture) addJobs(mirrors []*keptMirror) {
	for _, k := range mirrors {
		if p.pivot != nil && p.pivot.mirror == k {
			continue
		}
		if k.still != nil {
			p.Jobs = append(p.Jobs, *k.still)
			continue
		}
		source, target := k.mirror.Nodes()
		source, target = p.below(source), p.below(target)
		args, speed, now := *k.args, k.job.Speed(), k.mirror.State()
		args.Device, args.Target, args.Speed, args.TargetIsZero = source.Name(), target.Name(), &speed, nil
		if args.CopyMode = api.MirrorCopyMode(now.Mode.String()); now.Auto {
			args.CopyMode = api.MirrorCopyModeAuto
		}
		p.Jobs = append(p.Jobs, state.Job{Definition: definitionText(&args), Intent: k.file, Source: source.FileName(),
			Target: target.FileName(), Paused: k.job.PauseWanted() && k.job.Info().IOStatus == job.IOOK})
	}
}

// noteJob records what a verb changed of a job; undo takes it back if that is not possible.
func (h *Handlers) noteJob(ctx context.Context, j *job.Job, undo func()) error {
	if _, ok := j.Body().(*mirror.Mirror); !ok {
		return nil
	}
	return h.note(ctx, undo)
}

// ---- The end of the daemon

// keepMirrors has the mirrors come back that run now. Guests end before: their writes would pass by when the mirrors end.
func (h *Handlers) keepMirrors(ctx context.Context) error {
	if h.kept.Dir == nil {
		return nil
	}
	running := 0
	if err := h.eachKept(ctx, func(*picture, *keptMirror) { running++ }); err != nil || running == 0 {
		return err
	}
	var err error
	if h.nbd.Running() {
		err = h.nbd.Stop(ctx)
	}
	unknown := h.eachKept(ctx, func(p *picture, k *keptMirror) {
		p.addJobs([]*keptMirror{k})
		k.still = &p.Jobs[0]
		k.log.Keep()
		if err != nil { // guests may still write
			err = errors.Join(err, k.log.Invalidate(err))
		}
	})
	return errors.Join(err, unknown)
}

func (h *Handlers) eachKept(ctx context.Context, f func(*picture, *keptMirror)) error {
	return h.graph.Change(ctx, func(*block.Tx) error {
		for _, k := range h.kept.mirrors {
			f(&picture{State: &state.State{}, graph: h.graph}, k)
		}
		return nil
	})
}

// restMirrors records what the disks are when nobody has them open any more.
func (h *Handlers) restMirrors() error {
	var errs []error
	for _, k := range h.kept.mirrors {
		e, err := identify(k.still.Source, k.still.Target, k.size, k.size)
		if err == nil {
			err = k.log.Rest(e.Source, e.Target)
		}
		errs = append(errs, err, k.log.Close())
	}
	h.kept.mirrors = nil
	return errors.Join(errs...)
}

// ---- The start of the daemon

// resumption is a mirror of the state.
type resumption struct {
	state.Job
	args   api.BlockdevMirrorArguments
	expect intent.Expect
	err    error
}

// lookAtJobs decodes the mirrors of the state, and looks at their disks before anybody opens them.
func (r *restoring) lookAtJobs() {
	for _, j := range r.old.Jobs {
		again := &resumption{Job: j}
		if again.err = qmp.Unmarshal(j.Definition, &again.args); again.err == nil {
			again.expect, again.err = identify(j.Source, j.Target, 0, 0)
		}
		r.jobs = append(r.jobs, again)
	}
}

// resumeJobs starts the mirrors of the state. No guest is there yet.
func (r *restoring) resumeJobs(ctx context.Context) {
	for _, j := range r.jobs {
		err := j.err
		if err == nil {
			err = r.resume(ctx, j)
		}
		if err != nil {
			r.fail(fmt.Errorf("job '%s': %w", qmp.Or(j.args.JobID, string(j.Definition)), err))
		}
	}
}

func (r *restoring) resume(ctx context.Context, j *resumption) error {
	h := r.h
	path, err := h.kept.Dir.IntentPath(j.Intent)
	if err != nil {
		return err
	}
	o, err := h.mirrorOptions(&j.args)
	if err != nil {
		return err
	}
	j.expect.Source.Size, j.expect.Target.Size = o.Source.Size(), o.Target.Size()
	found := intent.LoadFile(path, j.expect)
	if found.Phase >= intent.Pivoted {
		return nil // it ended, and the state did not hear of it
	}
	for _, why := range found.Whys {
		h.kept.Trouble(fmt.Errorf("job '%s' copies more than it had left: %w", o.JobID, why))
	}
	reason := ""
	if err := errors.Join(found.Whys...); err != nil {
		reason = strings.ReplaceAll(err.Error(), "\n", "; ")
	} else if found.Dirty == nil {
		reason = "it was not known yet what had to be copied"
	}
	o.Resume = &mirror.Resume{Dirty: found.Dirty, Paused: j.Paused, OnResumed: func(left int64) {
		if h.kept.Resumed != nil {
			h.kept.Resumed(o.JobID, left, reason)
		}
		h.config.Emit(&api.MirrorResumedEvent{Device: o.JobID, BytesLeft: left, All: found.Dirty == nil, Reason: nonEmpty(reason)})
	}}
	return h.startKept(ctx, &j.args, o, found)
}

// jobsNow are the mirrors that were brought back, as the state is to have them from now on.
func (r *restoring) jobsNow(ctx context.Context) (jobs []state.Job, files []string, err error) {
	err = r.h.eachKept(ctx, func(p *picture, k *keptMirror) {
		p.addJobs([]*keptMirror{k})
		jobs, files = append(jobs, p.Jobs...), append(files, k.file)
	})
	return jobs, files, err
}
