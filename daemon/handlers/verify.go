// SPDX-License-Identifier: Apache-2.0

package handlers

import (
	"context"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/daemon/state"
	"github.com/blkmirror/blkmirror/job/mirror"
	"github.com/blkmirror/blkmirror/job/verify"
	"github.com/blkmirror/blkmirror/qmp"
	"github.com/blkmirror/blkmirror/qmp/api"
)

// tellOfVerification has a mirror tell monitors what its comparison finds.
func (h *Handlers) tellOfVerification(o *mirror.Options) {
	id := o.JobID
	o.OnDifference = func(d mirror.Difference) {
		h.config.Emit(&api.MirrorDifferenceEvent{Device: id, Offset: d.Off, Length: d.Len, DifferingBytes: d.Bytes})
	}
	o.OnVerified = func(differing int64) {
		h.config.Emit(&api.MirrorVerifiedEvent{Device: id, DifferingBytes: differing})
	}
	o.OnDigest = func(d mirror.Digest) {
		h.config.Emit(&api.MirrorDigestEvent{Device: id, Digest: nonEmpty(d.Sum), Reason: nonEmpty(d.Why)})
	}
}

// BlockdevVerify starts a job that compares two disks.
func (h *Handlers) BlockdevVerify(ctx context.Context, a *api.BlockdevVerifyArguments) error {
	return h.startVerify(ctx, a, nil)
}

// startVerify starts a comparison: one that begins, or one that goes on.
func (h *Handlers) startVerify(ctx context.Context, a *api.BlockdevVerifyArguments, again *resumption) (err error) {
	o := verify.Options{
		JobID: a.JobID, Speed: qmp.Or(a.Speed, 0), Digest: a.Digest == api.DiskDigestBlake3, OnSourceError: policy(a.OnSourceError), OnTargetError: policy(a.OnTargetError),
		AutoFinalize: qmp.Or(a.AutoFinalize, true), AutoDismiss: qmp.Or(a.AutoDismiss, true),
	}
	if o.Device, err = h.graph.Node(a.Device); err != nil {
		return err
	}
	if o.Target, err = h.graph.Node(a.Target); err != nil {
		return err
	}
	for _, n := range []*block.Node{o.Device, o.Target} {
		if err := h.checkUnmirrored(n); err != nil {
			return err
		}
	}
	o.OnEnd = func(s verify.State) {
		e := &api.BlockdevVerifiedEvent{Device: a.JobID, VerifiedBytes: s.Verified, DifferingBytes: s.Differing}
		if s.Differing > 0 {
			e.FirstDifference = &s.First
		}
		e.SourceDigest, e.TargetDigest = nonEmpty(s.Digests[0]), nonEmpty(s.Digests[1])
		h.config.Emit(e)
	}
	k := &keptJob{id: o.JobID, size: o.Device.Size(), digest: o.Digest}
	k.describe = func(p *picture) (j state.Job, err error) {
		args, speed := *a, k.job.Speed()
		args.Speed = &speed
		device, target := p.below(o.Device), p.below(o.Target)
		if args.Device, err = p.place(device); err != nil {
			return j, err
		}
		args.Target, err = p.place(target)
		return state.Job{Command: commandVerify, Definition: definitionText(&args), Source: p.diskName(device), Target: p.diskName(target),
			Compared: k.reached}, err
	}
	o.OnInsert = func(v *verify.Verify, tx *block.Tx) error {
		k.verify = v
		now := &picture{knowledge: h.knowledge()}
		k.disks = [2]string{now.diskName(o.Device), now.diskName(o.Target)}
		return h.inserted(k, tx)
	}
	o.OnPosition = func(ctx context.Context) { h.keepPosition(ctx, k) }
	o.OnClosed = func() error { return h.endKept(k) }
	if again != nil {
		o.Wanted = again.wanted()
		if o.From = h.comparedBefore(again, k.size); o.From.End > 0 {
			k.reached = again.Compared
		}
	}
	return h.startKept(k, func() error {
		_, err := verify.Start(ctx, h.graph, h.jobs, o, h.begins(ctx))
		return err
	})
}

// compared is what query-jobs tells of a comparison.
func compared(s verify.State) api.JobWork {
	return api.JobWork{VerifiedBytes: &s.Verified, UnverifiedBytes: &s.Left, DifferingBytes: &s.Differing}
}
