// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"context"
	"errors"
	"time"

	"github.com/blkmirror/blkmirror/job"
)

const (
	// pieceSize is the most that is copied in one go, and so the most that a guest's write waits for.
	pieceSize = 512 << 10
	// leastPiece is the least that is copied in one go with a low speed.
	leastPiece = 64 << 10
	// How long the job waits before it tries a failed piece again under the policy ignore, at first and at most.
	retryFirst, retryMost = 50 * time.Millisecond, 5 * time.Second
)

// run is the state of the job's goroutine.
type run struct {
	*Stream
	limiter job.Limiter
	retry   time.Duration // how long a failed piece waits next time
	notYet  time.Time     // nothing is copied before
}

// Run goes over the disk once, and finishes.
func (s *Stream) Run(ctx context.Context, j *job.Job) error {
	r := &run{Stream: s, retry: retryFirst}
	size := s.opts.Device.Size()
	j.Progress.SetRemaining(size)
	for at := int64(0); at < size; {
		n, err := r.step(ctx, at, size-at)
		if err != nil {
			return err
		}
		j.Progress.Done(n)
		at += n
	}
	if err := r.flush(ctx); err != nil {
		return err
	}
	for !j.EnterPending() {
		if err := j.Checkpoint(ctx); err != nil {
			return err
		}
	}
	for !j.FinalizeWanted() {
		select {
		case <-j.Wake():
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return s.finish(ctx)
}

// step deals with the disk from an offset on, for at most n bytes, and returns for how many it did; 0 to try again.
func (r *run) step(ctx context.Context, at, n int64) (done int64, err error) {
	if err := r.wait(ctx); err != nil {
		return 0, err
	}
	r.job.SetBusy(true)
	defer r.job.SetBusy(false)
	var copied int64
	err = r.inside(ctx, func() error {
		length, missing, err := r.missing(ctx, at, n)
		if err != nil || !missing {
			done = length
			return readFailed(err, at, n)
		}
		done, copied, err = r.populate(ctx, at, min(length, r.limiter.Piece(leastPiece, pieceSize)))
		return err
	})
	if err != nil {
		return 0, r.failed(err)
	}
	if copied > 0 {
		r.retry = retryFirst
		r.limiter.Take(copied, time.Now())
	}
	return done, nil
}

// flush makes durable what was copied.
func (r *run) flush(ctx context.Context) error {
	for {
		if err := r.wait(ctx); err != nil {
			return err
		}
		err := r.inside(ctx, func() error {
			if err := r.filter.device.Flush(ctx); err != nil {
				return &failure{err: err}
			}
			return nil
		})
		if err == nil {
			return nil
		}
		if err := r.failed(err); err != nil {
			return err
		}
	}
}

// inside runs f behind the job's gate.
func (r *run) inside(ctx context.Context, f func() error) error {
	gate := r.backend.Gate()
	if err := gate.Enter(ctx); err != nil {
		return err
	}
	defer gate.Leave()
	return f()
}

// wait holds the job while it is paused, for its speed, and after a failure.
func (r *run) wait(ctx context.Context) error {
	for {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		if r.job.PauseWanted() {
			if err := r.job.Checkpoint(ctx); err != nil {
				return err
			}
			r.notYet = time.Time{}
		}
		now := time.Now()
		r.limiter.SetSpeed(r.job.Speed(), now)
		wait := max(r.limiter.Wait(now), r.notYet.Sub(now))
		if wait <= 0 {
			return nil
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-r.job.Wake():
		case <-ctx.Done():
		}
		timer.Stop()
	}
}

// failed does what the policy says about a failed request. It returns the error if that ends the job.
func (r *run) failed(err error) error {
	var f *failure
	if !errors.As(err, &f) {
		return err // the job is being cancelled
	}
	action := r.opts.OnError.Decide(f.err)
	r.job.Report(job.Failure{Read: f.read, Node: r.opts.Device.Name(), Off: f.off, Len: f.len, Err: f.err, Action: action})
	switch action {
	case job.ActionReport:
		return f.err
	case job.ActionIgnore:
		r.notYet = time.Now().Add(r.retry)
		r.retry = min(r.retry*2, retryMost)
	}
	return nil
}
