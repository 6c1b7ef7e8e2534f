// SPDX-License-Identifier: Apache-2.0

package handlers

import (
	"context"

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
}

// BlockdevVerify starts a job that compares two disks.
func (h *Handlers) BlockdevVerify(ctx context.Context, a *api.BlockdevVerifyArguments) (err error) {
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
	o.OnEnd = func(s verify.State) {
		e := &api.BlockdevVerifiedEvent{Device: a.JobID, VerifiedBytes: s.Verified, DifferingBytes: s.Differing}
		if s.Differing > 0 {
			e.FirstDifference = &s.First
		}
		e.SourceDigest, e.TargetDigest = nonEmpty(s.Digests[0]), nonEmpty(s.Digests[1])
		h.config.Emit(e)
	}
	_, err = verify.Start(ctx, h.graph, h.jobs, o, after(ctx))
	return err
}

// compared is what query-jobs tells of a comparison.
func compared(s verify.State) api.JobWork {
	return api.JobWork{VerifiedBytes: &s.Verified, UnverifiedBytes: &s.Left, DifferingBytes: &s.Differing}
}
