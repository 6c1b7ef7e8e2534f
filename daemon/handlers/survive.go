// SPDX-License-Identifier: Apache-2.0

package handlers

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/bitmap"
	"github.com/blkmirror/blkmirror/daemon/state"
	"github.com/blkmirror/blkmirror/job"
	"github.com/blkmirror/blkmirror/job/mirror"
	"github.com/blkmirror/blkmirror/job/mirror/intent"
	"github.com/blkmirror/blkmirror/qmp"
	"github.com/blkmirror/blkmirror/qmp/api"
	"github.com/blkmirror/blkmirror/qmp/server"
)

// keptMirror is a mirror that a restart brings back, with an intent file of its own.
type keptMirror struct {
	args   *api.BlockdevMirrorArguments // as given
	log    *intent.Log
	flight *intent.Log // nil for a target that is here
	file   string      // the name of log's file
	second string      // that of flight's
	size   int64       // of the disks
	job    *job.Job
	mirror *mirror.Mirror
	still  *state.Job // how it is to come back when the daemon ends; nil before
}

// startKept starts a mirror that is kept: one that begins, or, with what was found in its last intent file, one that goes on.
func (h *Handlers) startKept(ctx context.Context, a *api.BlockdevMirrorArguments, o mirror.Options, found *intent.Found) (err error) {
	k := &keptMirror{args: a, size: o.Source.Size()}
	var undone error
	defer func() {
		if err != nil {
			err = errors.Join(err, undone, k.close(), h.dropFiles(k))
		}
	}()
	now := &picture{knowledge: h.knowledge()}
	expect, err := h.identify(now.diskName(o.Source), now.diskName(o.Target), k.size, o.Target.Size())
	if err != nil {
		return err
	}
	c := intent.Config{Size: k.size, Granularity: 512, Durability: h.kept.Durability, Boot: expect.Boot, Source: expect.Source,
		Target: expect.Target, Unflushed: o.Target.Reconnects(), Region: h.kept.Region, Hot: h.kept.Hot}
	var dirty *bitmap.Bitmap
	if found != nil {
		dirty = found.Dirty
	}
	if k.file, k.log, err = h.newIntent(c, dirty); err != nil {
		return err
	}
	if o.Target.Reconnects() {
		flight, err := bitmap.New(k.size, 512<<10) // nothing
		if err != nil {
			return err
		}
		if o.Resume != nil {
			flight = o.Resume.Flight
		}
		c.Hot = flightHot
		if k.second, k.flight, err = h.newIntent(c, flight); err != nil {
			return err
		}
	}
	o.Intent, o.Flight = k.log, k.flight
	o.OnPivot = h.recordPivot(&pivot{from: o.Source, to: o.Target, mirror: k})
	o.OnInsert = func(_ context.Context, m *mirror.Mirror, tx *block.Tx) error {
		return h.keepInserted(k, m, tx, &undone)
	}
	o.OnEnd = func(bool) error { return h.endKept(k) }
	o.OnTrouble = func(err error) { h.intentTrouble(o.JobID, err) }
	_, err = mirror.Start(ctx, h.graph, h.jobs, o, after(ctx))
	return err
}

// flightHot bounds what has to be compared at completion after a crash, in regions.
const flightHot = 32

// newIntent makes an intent file; with nothing known to be dirty, everything is.
func (h *Handlers) newIntent(c intent.Config, dirty *bitmap.Bitmap) (name string, log *intent.Log, err error) {
	dir := h.kept.Dir
	if name, err = dir.NewIntent(); err != nil {
		return "", nil, err
	}
	path, err := dir.IntentPath(name)
	if err != nil {
		return "", nil, err
	}
	phase := intent.Copying
	if dirty == nil {
		phase = intent.Scanning
	}
	f, err := dir.MakeIntent(name)
	if err != nil {
		return "", nil, fmt.Errorf("intent file: %w", err)
	}
	if log, err = intent.Create(path, f, c, phase, dirty); err != nil {
		return "", nil, errors.Join(err, f.Close(), dir.DropIntent(name))
	}
	return name, log, dir.Sync()
}

// loadIntent reads an intent file.
func (h *Handlers) loadIntent(name string, expect intent.Expect) (*intent.Found, error) {
	path, err := h.kept.Dir.IntentPath(name)
	if err != nil {
		return nil, err
	}
	f, err := h.kept.Dir.OpenIntent(name)
	if err != nil {
		return intent.Lost(path, err), nil
	}
	defer f.Close()
	return intent.Load(path, f, expect), nil
}

func (k *keptMirror) close() error {
	var errs []error
	for _, l := range []*intent.Log{k.log, k.flight} {
		if l != nil {
			errs = append(errs, l.Close())
		}
	}
	return errors.Join(errs...)
}

// dropFiles removes the files of a mirror that no state names.
func (h *Handlers) dropFiles(k *keptMirror) error {
	var errs []error
	for _, name := range []string{k.file, k.second} {
		if name != "" {
			errs = append(errs, h.kept.Dir.DropIntent(name))
		}
	}
	return errors.Join(errs...)
}

// identify says who the disks are and when this is.
func (h *Handlers) identify(source, target string, sourceSize, targetSize int64) (e intent.Expect, err error) {
	host := &h.config.Host
	if e.Boot, err = host.BootID(); err != nil {
		return e, err
	}
	if e.Source, err = host.Identify(source, sourceSize); err != nil {
		return e, err
	}
	e.Target, err = host.Identify(target, targetSize)
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
	recorded := false
	err := h.graph.Change(context.Background(), func(tx *block.Tx) error {
		h.dropKept(k)
		if recorded = h.kept.on; !recorded {
			return nil
		}
		return h.record(tx, nil, &undone)
	})
	err = errors.Join(err, undone, k.close())
	switch {
	case err != nil:
		h.kept.Trouble(fmt.Errorf("job '%s' has ended: %w", *k.args.JobID, err))
	case recorded: // else the state may name the files, which say that the mirror has ended
		return h.dropFiles(k)
	}
	return nil
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
		args.MaxGuestLatency = positive(now.MaxGuestLatency.Nanoseconds())
		if args.CopyMode = api.MirrorCopyMode(now.Mode.String()); now.Auto {
			args.CopyMode = api.MirrorCopyModeAuto
		}
		p.Jobs = append(p.Jobs, state.Job{Definition: definitionText(&args), Intent: k.file, Flight: k.second, Source: p.diskName(source),
			Target: p.diskName(target), Paused: k.job.PauseWanted() && k.job.Info().IOStatus == job.IOOK})
	}
}

// diskName is the file or the URI that a node's disk is in, wherever the daemon works from.
func (p *picture) diskName(n *block.Node) string {
	name := n.FileName()
	if strings.Contains(name, "://") {
		return name
	}
	return absolute(name, p.opened[n.Unfiltered()].folder)
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
			f(&picture{State: &state.State{}, knowledge: h.knowledge(), graph: h.graph}, k)
		}
		return nil
	})
}

// restMirrors records what the disks are when nobody has them open any more.
func (h *Handlers) restMirrors() error {
	var errs []error
	for _, k := range h.kept.mirrors {
		e, err := h.identify(k.still.Source, k.still.Target, k.size, k.size)
		if err == nil {
			err = k.log.Rest(e.Source, e.Target)
		}
		errs = append(errs, err, k.close())
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
			again.expect, again.err = r.h.identify(j.Source, j.Target, 0, 0)
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
	o, err := h.mirrorOptions(&j.args)
	if err != nil {
		return err
	}
	j.expect.Source.Size, j.expect.Target.Size = o.Source.Size(), o.Target.Size()
	found, err := h.loadIntent(j.Intent, j.expect)
	if err != nil {
		return err
	}
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
	var flight *bitmap.Bitmap
	if j.Flight != "" {
		on, err := h.loadIntent(j.Flight, j.expect)
		if err != nil {
			return err
		}
		flight = on.Dirty
		for _, why := range on.Whys {
			h.kept.Trouble(fmt.Errorf("job '%s' compares more at its end: %w", o.JobID, why))
		}
	}
	o.Resume = &mirror.Resume{Dirty: found.Dirty, Flight: flight, Paused: j.Paused, OnResumed: func(left int64) {
		if h.kept.Resumed != nil {
			h.kept.Resumed(o.JobID, left, reason)
		}
		h.tell(&api.MirrorResumedEvent{Device: o.JobID, BytesLeft: left, All: found.Dirty == nil, Reason: nonEmpty(reason)})
	}}
	return h.startKept(ctx, &j.args, o, found)
}

// news are events of the start, which are kept until somebody is there: they come after the reply to the first command.
type news struct {
	mu struct {
		sync.Mutex
		waiting []qmp.Event
		heard   bool // a command came
	}
}

func (h *Handlers) tell(e qmp.Event) {
	h.news.mu.Lock()
	defer h.news.mu.Unlock()
	if h.news.mu.heard {
		h.config.Emit(e)
		return
	}
	h.news.mu.waiting = append(h.news.mu.waiting, e)
}

// announce tells what has happened before the first command.
func (h *Handlers) announce(ctx context.Context) {
	h.news.mu.Lock()
	waiting := h.news.mu.waiting
	h.news.mu.waiting, h.news.mu.heard = nil, true
	h.news.mu.Unlock()
	if len(waiting) > 0 {
		server.AfterReply(ctx, func() {
			for _, e := range waiting {
				h.config.Emit(e)
			}
		})
	}
}

// jobsNow are the mirrors that were brought back, as the state is to have them from now on.
func (r *restoring) jobsNow(ctx context.Context) (jobs []state.Job, files []string, err error) {
	err = r.h.eachKept(ctx, func(p *picture, k *keptMirror) {
		p.addJobs([]*keptMirror{k})
		jobs, files = append(jobs, p.Jobs...), append(files, k.file, k.second)
	})
	return jobs, files, err
}
