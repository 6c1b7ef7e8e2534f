// SPDX-License-Identifier: Apache-2.0

package handlers

import (
	"context"
	"slices"
	"time"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/daemon/state"
	"github.com/blkmirror/blkmirror/job"
	"github.com/blkmirror/blkmirror/job/mirror"
	"github.com/blkmirror/blkmirror/job/mirror/intent"
	"github.com/blkmirror/blkmirror/qmp"
	"github.com/blkmirror/blkmirror/qmp/api"
)

// BlockdevMirror starts a mirror.
func (h *Handlers) BlockdevMirror(ctx context.Context, a *api.BlockdevMirrorArguments) error {
	o, err := h.mirrorOptions(a)
	if err != nil {
		return err
	}
	return h.startMirror(ctx, a, o, nil)
}

// startMirror starts a mirror: one that begins, or, with what was found in its last intent file, one that goes on.
func (h *Handlers) startMirror(ctx context.Context, a *api.BlockdevMirrorArguments, o mirror.Options, found *intent.Found) error {
	k := &keptJob{id: o.JobID}
	k.describe = func(p *picture) (j state.Job, err error) {
		source, target := k.mirror.Nodes()
		source, target = p.below(source), p.below(target)
		args, speed, now := *a, k.job.Speed(), k.mirror.State()
		args.Speed, args.TargetIsZero = &speed, nil
		args.MaxGuestLatency = positive(now.MaxGuestLatency.Nanoseconds())
		if args.CopyMode = api.MirrorCopyMode(now.Mode.String()); now.Auto {
			args.CopyMode = api.MirrorCopyModeAuto
		}
		if args.Device, err = p.place(source); err != nil {
			return j, err
		}
		if args.Target, err = p.place(target); err != nil {
			return j, err
		}
		if args.Replaces != nil {
			args.Replaces = &args.Device // nothing else is accepted
		}
		return state.Job{Definition: definitionText(&args), Source: p.diskName(source), Target: p.diskName(target)}, nil
	}
	return h.startKept(k, func() error {
		if err := h.keepMirror(k, &o, found); err != nil {
			return err
		}
		_, err := mirror.Start(ctx, h.graph, h.jobs, o, h.begins(ctx))
		return err
	})
}

// XBlockdevMirrorVerify has a mirror compare its disks once over.
func (h *Handlers) XBlockdevMirrorVerify(_ context.Context, a *api.XBlockdevMirrorVerifyArguments) error {
	return h.onBlock(a.ID, func(j *job.Job) error {
		m, ok := j.Body().(*mirror.Mirror)
		if !ok {
			return qmp.Errorf("Job '%s' of type '%s' is no mirror", a.ID, j.Info().Type)
		}
		return m.Verify()
	})
}

// checkUnmirrored refuses a disk of a mirror, of which only the mirror knows what is meant to be equal.
func (h *Handlers) checkUnmirrored(n *block.Node) error {
	for _, j := range h.jobs.Jobs() {
		if m, ok := j.Body().(*mirror.Mirror); ok && m.Uses(n) {
			return qmp.Errorf("Node '%s' is a disk of job '%s', a mirror: x-blockdev-mirror-verify has it compare its disks when it is ready", n.Name(), j.ID())
		}
	}
	return nil
}

// mirrorOptions finds what a mirror needs.
func (h *Handlers) mirrorOptions(a *api.BlockdevMirrorArguments) (o mirror.Options, err error) {
	o = mirror.Options{
		JobID: qmp.Or(a.JobID, ""), Speed: qmp.Or(a.Speed, 0), Granularity: int64(qmp.Or(a.Granularity, 0)),
		BufSize: qmp.Or(a.BufSize, 0), FilterName: qmp.Or(a.FilterNodeName, ""), OnModeChange: h.modeChanged,
		OnSourceError: policy(a.OnSourceError), OnTargetError: policy(a.OnTargetError),
		TargetIsZero: qmp.Or(a.TargetIsZero, false), MaxGuestLatency: time.Duration(qmp.Or(a.MaxGuestLatency, 0)),
		AutoFinalize: qmp.Or(a.AutoFinalize, true), AutoDismiss: qmp.Or(a.AutoDismiss, true),
	}
	o.Verify, o.Digest = qmp.Or(a.XVerify, false), a.XVerifyDigest == api.DiskDigestBlake3
	h.tellOfVerification(&o)
	o.Mode, o.Auto = copyMode(a.CopyMode)
	switch a.CopyOffload {
	case api.MirrorCopyOffloadRange:
		o.Offload = mirror.OffloadRange
	case api.MirrorCopyOffloadOff:
		o.Offload = mirror.OffloadOff
	}
	if o.Source, err = h.graph.Node(a.Device); err != nil {
		return o, err
	}
	if o.Target, err = h.graph.Node(a.Target); err != nil {
		return o, err
	}
	if a.Replaces != nil {
		if o.Replaces, err = h.graph.Node(*a.Replaces); err != nil {
			return o, qmp.Errorf("Failed to find node with node-name='%s'", *a.Replaces)
		}
	}
	switch a.Sync {
	case api.MirrorSyncModeFull:
		o.Sync = mirror.SyncFull
	case api.MirrorSyncModeTop:
		o.Sync = mirror.SyncTop
		if o.Source.Backing() == nil {
			o.Sync = mirror.SyncFull // there is nothing but the top
		}
	case api.MirrorSyncModeNone:
		o.Sync = mirror.SyncNone
	case api.MirrorSyncModeBitmap, api.MirrorSyncModeIncremental:
		if a.Bitmap == nil {
			return o, qmp.Errorf("Sync mode '%s' not supported without parameter 'bitmap'", a.Sync)
		}
		o.Sync = mirror.SyncBitmap
	}
	if a.Bitmap != nil {
		if o.Bitmap, err = o.Source.FindBitmap(*a.Bitmap); err != nil {
			return o, err
		}
	}
	return o, nil
}

// awaitsBacking says whether n is the target of a mirror that will be given its backing node later.
func (h *Handlers) awaitsBacking(n *block.Node) bool {
	return slices.ContainsFunc(h.jobs.Jobs(), func(j *job.Job) bool {
		m, ok := j.Body().(*mirror.Mirror)
		return ok && m.AwaitsBacking(n)
	})
}

// copyMode is the mode to begin with, and whether the job may change it.
func copyMode(m api.MirrorCopyMode) (mode mirror.Mode, auto bool) {
	switch m {
	case api.MirrorCopyModeWriteBlocking:
		return mirror.WriteBlocking, false
	case api.MirrorCopyModeAuto:
		return mirror.Background, true
	}
	return mirror.Background, false
}

// modeChanged tells that a job changed its copy mode by itself.
func (h *Handlers) modeChanged(c mirror.ModeChange) {
	h.config.Emit(&api.BlockJobCopyModeChangedEvent{Device: c.JobID, CopyMode: api.MirrorCopyMode(c.Mode.String()), Reason: c.Reason})
}

func policy(p api.BlockdevOnError) job.Policy {
	switch p {
	case api.BlockdevOnErrorIgnore:
		return job.PolicyIgnore
	case api.BlockdevOnErrorStop:
		return job.PolicyStop
	case api.BlockdevOnErrorEnospc, api.BlockdevOnErrorAuto:
		return job.PolicyENOSPC
	}
	return job.PolicyReport
}
