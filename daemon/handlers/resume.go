// SPDX-License-Identifier: Apache-2.0

package handlers

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/bitmap"
	"github.com/blkmirror/blkmirror/daemon/state"
	"github.com/blkmirror/blkmirror/job"
	"github.com/blkmirror/blkmirror/job/chain"
	"github.com/blkmirror/blkmirror/job/mirror"
	"github.com/blkmirror/blkmirror/job/mirror/intent"
	"github.com/blkmirror/blkmirror/qmp"
	"github.com/blkmirror/blkmirror/qmp/api"
)

// resumption is a job of the state.
type resumption struct {
	state.Job
	id     string
	expect intent.Expect // of jobs whose disks have to be the same
	nodes  []string      // that it needs
	err    error
}

// errHasEnded is a job that was at its end, of which the state did not hear.
var errHasEnded = errors.New("it has done its work")

// lookAtJobs decodes the jobs of the state, and looks at their disks before anybody opens them.
func (r *restoring) lookAtJobs() {
	for _, j := range r.old.Jobs {
		again := &resumption{Job: j}
		var named struct {
			ID             string `json:"job-id"`
			Device, Target string
		}
		switch again.err = json.Unmarshal(j.Definition, &named); {
		case again.err != nil:
		case j.Complete != "" && j.Complete != state.CompleteFull && j.Complete != state.CompleteSoft:
			again.err = fmt.Errorf("'%s' is no way to complete", j.Complete)
		case j.Source != "":
			again.expect, again.err = r.h.identify(j.Source, j.Target, 0, 0)
		}
		again.id = named.ID
		for _, n := range []string{named.Device, named.Target} {
			if n != "" {
				again.nodes = append(again.nodes, n)
			}
		}
		r.jobs = append(r.jobs, again)
	}
}

// lackingJobs reports the jobs that cannot come back since nodes did not.
func (r *restoring) lackingJobs() {
	for _, j := range r.jobs {
		err := j.err
		for _, n := range j.nodes {
			_, lacks := r.h.at(n)
			err = errors.Join(err, lacks)
		}
		if err != nil {
			r.fail(j.failed(err))
		}
	}
}

func (j *resumption) failed(err error) error {
	return fmt.Errorf("job '%s': %w", either(j.id, string(j.Definition)), err)
}

// resumeJobs starts the jobs of the state. No guest is there yet.
func (r *restoring) resumeJobs(ctx context.Context) {
	for _, j := range r.jobs {
		err := j.err
		if err == nil {
			err = r.h.resumeJob(ctx, j)
		}
		if err != nil && !errors.Is(err, errHasEnded) {
			r.fail(j.failed(err))
		}
	}
}

// begins lets a job begin its work: after the reply to the command that made it, or when the start is over. Until then no job can come
// to an end that would not be recorded, and take a node away that an export is about to stand on.
func (h *Handlers) begins(ctx context.Context) job.After {
	if h.kept.waiting == nil {
		return after(ctx)
	}
	return func(f func()) { *h.kept.waiting = append(*h.kept.waiting, f) }
}

// letGo lets the jobs go on that came back. If the start failed they only clean up.
func (h *Handlers) letGo(well bool) {
	waiting := *h.kept.waiting
	h.kept.waiting = nil
	if !well {
		for _, j := range h.jobs.Jobs() {
			_ = j.Cancel(nil) // nothing keeps it from being cancelled
		}
	}
	for _, f := range waiting {
		f()
	}
}

func (h *Handlers) resumeJob(ctx context.Context, j *resumption) error {
	switch j.Command {
	case "":
		return h.resumeMirror(ctx, j)
	case commandCommit:
		return h.resumeCommit(ctx, j)
	case commandStream:
		return h.resumeStream(ctx, j)
	case commandVerify:
		return h.resumeVerify(ctx, j)
	}
	return fmt.Errorf("'%s' makes no job that comes back", j.Command)
}

func (j *resumption) wanted() job.Wanted {
	return job.Wanted{Paused: j.Paused, Complete: j.Complete != "", Softly: j.Complete == state.CompleteSoft, Finalize: j.Finalize}
}

// findNode has a name of a node that may be a place be the name that it has now.
func (h *Handlers) findNode(name *string) (*block.Node, error) {
	n, err := h.at(*name)
	if err == nil {
		*name = n.Name()
	}
	return n, err
}

// findLayer has a layer of a chain that is given by its disk be given by the name that its node has now.
func (h *Handlers) findLayer(device *block.Node, node, file **string) error {
	if *file == nil {
		return nil
	}
	p := &picture{knowledge: h.knowledge()}
	for _, n := range chain.Nodes(device) {
		if n = n.Unfiltered(); h.sameDisk(p.diskName(n), **file) {
			name := n.Name()
			*node, *file = &name, nil
			return nil
		}
	}
	return fmt.Errorf("'%s' is not in the backing chain of node '%s'", **file, device.Name())
}

// sameDisk says whether two names are of one disk.
func (h *Handlers) sameDisk(a, b string) bool {
	if a == b {
		return true
	}
	is, err := h.config.Host.Identify(a, 0)
	if err != nil {
		return false
	}
	other, err := h.config.Host.Identify(b, 0)
	return err == nil && is == other
}

func (h *Handlers) resumeMirror(ctx context.Context, j *resumption) error {
	var a api.BlockdevMirrorArguments
	if err := qmp.Unmarshal(j.Definition, &a); err != nil {
		return err
	}
	for _, name := range []*string{&a.Device, &a.Target} {
		if _, err := h.findNode(name); err != nil {
			return err
		}
	}
	if a.Replaces != nil {
		a.Replaces = &a.Device
	}
	o, err := h.mirrorOptions(&a)
	if err != nil {
		return err
	}
	o.Wanted = j.wanted()
	found, err := h.findIntent(j, &o)
	if err != nil {
		return err
	}
	return h.startMirror(ctx, &a, o, found)
}

func (h *Handlers) resumeCommit(ctx context.Context, j *resumption) error {
	var a api.BlockCommitArguments
	if err := qmp.Unmarshal(j.Definition, &a); err != nil {
		return err
	}
	device, err := h.findNode(&a.Device)
	if err != nil {
		return err
	}
	if err := h.findLayer(device, &a.BaseNode, &a.Base); err != nil {
		return err
	}
	if err := h.findLayer(device, &a.TopNode, &a.Top); err != nil {
		// The image above top has been told that it stands on base. That comes last.
		h.kept.Trouble(fmt.Errorf("job '%s' %w, since %w", j.id, errHasEnded, err))
		return errHasEnded
	}
	return h.startCommit(ctx, &a, j)
}

func (h *Handlers) resumeStream(ctx context.Context, j *resumption) error {
	var a api.BlockStreamArguments
	if err := qmp.Unmarshal(j.Definition, &a); err != nil {
		return err
	}
	device, err := h.findNode(&a.Device)
	if err != nil {
		return err
	}
	if err := h.findLayer(device, &a.BaseNode, &a.Base); err != nil {
		return err
	}
	if err := h.startStream(ctx, &a, j); err != nil {
		return err
	}
	h.goesOn(j.id, -1, "")
	return nil
}

func (h *Handlers) resumeVerify(ctx context.Context, j *resumption) error {
	var a api.BlockdevVerifyArguments
	if err := qmp.Unmarshal(j.Definition, &a); err != nil {
		return err
	}
	for _, name := range []*string{&a.Device, &a.Target} {
		if _, err := h.findNode(name); err != nil {
			return err
		}
	}
	return h.startVerify(ctx, &a, j)
}

// goesOn tells that a job goes on.
func (h *Handlers) goesOn(id string, left int64, reason string) {
	if h.kept.Resumed != nil {
		h.kept.Resumed(id, left, reason)
	}
}

// jobsNow are the jobs that were brought back, as the state is to have them from now on.
func (r *restoring) jobsNow(ctx context.Context) (jobs []state.Job, files []string, err error) {
	err = r.h.eachKept(ctx, func(p *picture, k *keptJob) {
		p.addJobs([]*keptJob{k})
		files = append(files, k.file, k.second)
		jobs = p.Jobs
	})
	return jobs, files, err
}

// ---- Mirrors and commits

// findIntent looks what a mirror or a commit had left to do, and has its options say so; nil for one that begins.
func (h *Handlers) findIntent(j *resumption, o *mirror.Options) (*intent.Found, error) {
	if j == nil {
		return nil, nil
	}
	j.expect.Source.Size, j.expect.Target.Size = o.Source.Size(), targetSize(o)
	found, err := h.loadIntent(j.Intent, j.expect)
	if err != nil {
		return nil, err
	}
	if found.Phase >= intent.Pivoted {
		return nil, errHasEnded
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
			return nil, err
		}
		flight = on.Dirty
		for _, why := range on.Whys {
			h.kept.Trouble(fmt.Errorf("job '%s' compares more at its end: %w", o.JobID, why))
		}
	}
	o.Resume = &mirror.Resume{Dirty: found.Dirty, Flight: flight, Pass: found.Pass, OnResumed: func(left int64) {
		h.goesOn(o.JobID, left, reason)
		h.tell(&api.MirrorResumedEvent{Device: o.JobID, BytesLeft: left, All: found.Dirty == nil, Reason: nonEmpty(reason)})
	}}
	return found, nil
}
