// SPDX-License-Identifier: Apache-2.0

package handlers

import (
	"context"
	"time"

	"github.com/blkmirror/blkmirror/job"
	"github.com/blkmirror/blkmirror/job/mirror"
	"github.com/blkmirror/blkmirror/job/verify"
	"github.com/blkmirror/blkmirror/qmp"
	"github.com/blkmirror/blkmirror/qmp/api"
)

// on runs a verb on a job.
func (h *Handlers) on(id string, verb func(*job.Job) error) error {
	j, err := h.jobs.Find(id)
	if err != nil {
		return err
	}
	return verb(j)
}

// onBlock runs a verb on a block job, which is what the older commands know.
func (h *Handlers) onBlock(id string, verb func(*job.Job) error) error {
	j, err := h.jobs.FindBlockJob(id)
	if err != nil {
		return err
	}
	return verb(j)
}

func always() bool { return true }
func never() bool  { return false }

func (h *Handlers) JobPause(ctx context.Context, a *api.JobPauseArguments) error {
	return h.on(a.ID, func(j *job.Job) error { return h.pause(ctx, j) })
}

func (h *Handlers) JobResume(ctx context.Context, a *api.JobResumeArguments) error {
	return h.on(a.ID, func(j *job.Job) error { return h.resume(ctx, j) })
}

func (h *Handlers) JobCancel(ctx context.Context, a *api.JobCancelArguments) error {
	return h.on(a.ID, func(j *job.Job) error { return h.ask(ctx, j, j.Cancel, always) })
}

func (h *Handlers) JobComplete(ctx context.Context, a *api.JobCompleteArguments) error {
	return h.on(a.ID, func(j *job.Job) error { return h.ask(ctx, j, j.Complete, never) })
}

func (h *Handlers) JobFinalize(ctx context.Context, a *api.JobFinalizeArguments) error {
	return h.on(a.ID, func(j *job.Job) error { return h.ask(ctx, j, j.Finalize, never) })
}

func (h *Handlers) JobDismiss(_ context.Context, a *api.JobDismissArguments) error {
	return h.on(a.ID, (*job.Job).Dismiss)
}

func (h *Handlers) BlockJobPause(ctx context.Context, a *api.BlockJobPauseArguments) error {
	return h.onBlock(a.Device, func(j *job.Job) error { return h.pause(ctx, j) })
}

func (h *Handlers) BlockJobResume(ctx context.Context, a *api.BlockJobResumeArguments) error {
	return h.onBlock(a.Device, func(j *job.Job) error { return h.resume(ctx, j) })
}

func (h *Handlers) BlockJobCancel(ctx context.Context, a *api.BlockJobCancelArguments) error {
	force := qmp.Or(a.Force, false)
	return h.onBlock(a.Device, func(j *job.Job) error {
		return h.ask(ctx, j, func(after job.After) error { return j.SoftCancel(force, after) }, func() bool { return force || !j.Wanted().Softly })
	})
}

func (h *Handlers) BlockJobComplete(ctx context.Context, a *api.BlockJobCompleteArguments) error {
	return h.onBlock(a.Device, func(j *job.Job) error { return h.ask(ctx, j, j.Complete, never) })
}

func (h *Handlers) BlockJobFinalize(ctx context.Context, a *api.BlockJobFinalizeArguments) error {
	return h.onBlock(a.ID, func(j *job.Job) error { return h.ask(ctx, j, j.Finalize, never) })
}

func (h *Handlers) BlockJobDismiss(_ context.Context, a *api.BlockJobDismissArguments) error {
	return h.onBlock(a.ID, (*job.Job).Dismiss)
}

func (h *Handlers) BlockJobSetSpeed(ctx context.Context, a *api.BlockJobSetSpeedArguments) error {
	return h.onBlock(a.Device, func(j *job.Job) error {
		was := j.Speed()
		if err := j.SetSpeed(a.Speed); err != nil {
			return err
		}
		return h.noteJob(ctx, j, func() { _ = j.SetSpeed(was) }) // fails if the job has ended meanwhile
	})
}

func (h *Handlers) pause(ctx context.Context, j *job.Job) error {
	if err := j.Pause(after(ctx)); err != nil {
		return err
	}
	return h.noteJob(ctx, j, func() { _ = j.Resume(nil) })
}

func (h *Handlers) resume(ctx context.Context, j *job.Job) error {
	if err := j.Resume(after(ctx)); err != nil {
		return err
	}
	return h.noteJob(ctx, j, func() { _ = j.Pause(nil) })
}

// BlockJobChange changes the copy mode of a mirror, or how long guests' requests may take.
func (h *Handlers) BlockJobChange(ctx context.Context, a *api.BlockJobChangeOptions) error {
	return h.onBlock(a.ID, func(j *job.Job) error {
		if err := j.AllowChange(); err != nil {
			return err
		}
		m, ok := j.Body().(*mirror.Mirror)
		if !ok || a.Mirror == nil {
			return qmp.Errorf("Job '%s' of type '%s' cannot be changed as a job of type '%s'", a.ID, j.Info().Type, a.Type)
		}
		latency := a.Mirror.MaxGuestLatency
		switch {
		case a.Mirror.CopyMode == "" && latency == nil:
			return qmp.Errorf("Parameter 'copy-mode' is missing")
		case latency != nil && *latency < 0:
			return qmp.Errorf("Parameter 'max-guest-latency' expects a non-negative value")
		}
		was := m.State()
		if a.Mirror.CopyMode != "" {
			m.ChangeMode(copyMode(a.Mirror.CopyMode))
		}
		if latency != nil {
			m.SetMaxGuestLatency(time.Duration(*latency))
		}
		return h.noteJob(ctx, j, func() {
			m.ChangeMode(was.Mode, was.Auto)
			m.SetMaxGuestLatency(was.MaxGuestLatency)
		})
	})
}

// QueryJobs describes all jobs.
func (h *Handlers) QueryJobs(context.Context) ([]api.JobInfo, error) {
	var list []api.JobInfo
	for _, j := range h.jobs.Jobs() {
		i := j.Info()
		info := api.JobInfo{ID: i.ID, Type: api.JobType(i.Type), Status: api.JobStatus(i.Status.String()),
			CurrentProgress: i.Current, TotalProgress: i.Total, Error: nonEmpty(i.Error)}
		switch body := j.Body().(type) {
		case *mirror.Mirror:
			info.JobWork = work(body.State())
		case *verify.Verify:
			info.JobWork = compared(body.State())
		}
		list = append(list, info)
	}
	return list, nil
}

// QueryBlockJobs describes the block jobs.
func (h *Handlers) QueryBlockJobs(context.Context) ([]api.BlockJobInfo, error) {
	var list []api.BlockJobInfo
	for _, j := range h.jobs.Jobs() {
		i := j.Info()
		if !i.BlockJob {
			continue
		}
		info := api.BlockJobInfo{Type: api.JobType(i.Type), Device: i.ID, Len: i.Total, Offset: i.Current, Busy: i.Busy,
			Paused: i.Paused, Speed: i.Speed, IOStatus: api.BlockDeviceIoStatus(i.IOStatus.String()),
			Ready:  i.Status == job.Ready || i.Status == job.Standby,
			Status: api.JobStatus(i.Status.String()), AutoFinalize: i.AutoFinalize, AutoDismiss: i.AutoDismiss,
			Error: nonEmpty(i.Error)}
		if m, ok := j.Body().(*mirror.Mirror); ok && i.Type == string(api.JobTypeMirror) {
			s := m.State()
			info.Mirror = &api.BlockJobInfoMirror{JobWork: work(s), ActivelySynced: s.Synced}
		}
		list = append(list, info)
	}
	return list, nil
}

func work(s mirror.State) api.JobWork {
	delay := s.GuestDelay.Nanoseconds()
	w := api.JobWork{CopiedBytes: &s.Bytes.Copied, ZeroedBytes: &s.Bytes.Zeroed, SkippedBytes: &s.Bytes.Skipped,
		OffloadedBytes: &s.Bytes.Offloaded,
		DirtyBytes:     &s.Dirty, Rate: &s.Rate, GuestWriteDelayNS: &delay, Source: &s.Source, Target: &s.Target}
	if s.SecondsLeft >= 0 {
		w.SecondsLeft = &s.SecondsLeft
	}
	if s.MaxGuestLatency > 0 {
		most, latency := s.MaxGuestLatency.Nanoseconds(), s.GuestLatency.Nanoseconds()
		w.MaxGuestLatency, w.GuestLatencyNS, w.RateLimit = &most, &latency, positive(s.Braked)
	}
	if p := &s.Proof; p.On {
		w.VerifiedBytes, w.UnverifiedBytes, w.DifferingBytes = &p.Verified, &p.Left, &p.Differing
		w.Digest, w.DigestMissing = nonEmpty(p.Digest.Sum), nonEmpty(p.Digest.Why)
	}
	return w
}
