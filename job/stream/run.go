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
	// workers is how many pieces are in flight at first.
	workers = 2
	// How long the job waits before it tries a failed piece again under the policy ignore, at first and at most.
	retryFirst, retryMost = 50 * time.Millisecond, 5 * time.Second
)

// span is a part of the disk, in bytes.
type span struct{ off, end int64 }

// result is what came of a piece.
type result struct {
	span
	done   int64 // where the piece was left
	copied int64 // bytes that had to be
	err    error
}

// run is the state of the job's goroutine.
type run struct {
	*Stream
	limiter  job.Limiter
	crew     job.Crew
	room     int64  // bytes set aside for the next piece
	at       int64  // where the search for the next piece begins
	again    []span // pieces that failed
	inFlight int
	results  chan result
	failed   error         // of the first piece that failed and was not dealt with
	retry    time.Duration // how long a failed piece waits next time
	notYet   time.Time     // nothing is copied before
}

// Run goes over the disk once, and finishes.
func (s *Stream) Run(ctx context.Context, j *job.Job) error {
	r := &run{Stream: s, retry: retryFirst, crew: job.NewCrew(workers, job.MaxCrew), results: make(chan result, job.MaxCrew)}
	err := r.copyAll(ctx)
	r.settle()
	if err == nil {
		err = r.flush(ctx)
	}
	if err != nil {
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

// copyAll goes over the disk.
func (r *run) copyAll(ctx context.Context) error {
	size := r.opts.Device.Size()
	r.job.Progress.SetRemaining(size)
	for {
		wait, err := r.look(ctx)
		if err != nil {
			return err
		}
		switch next := r.at < size || len(r.again) > 0; {
		case next && wait <= 0 && r.inFlight < r.crew.Size() && r.setAside():
			if err := r.step(ctx, size); err != nil && !errors.Is(err, job.ErrPause) {
				return err
			}
		case next || r.inFlight > 0:
			if r.inFlight < r.crew.Size() {
				r.crew.Idle() // it is the speed, the memory or the end that holds the job up
			}
			r.sleep(ctx, wait)
		default:
			return nil
		}
	}
}

// look deals with what others want and with what failed, and says how long the next piece has to wait.
func (r *run) look(ctx context.Context) (time.Duration, error) {
	if err := context.Cause(ctx); err != nil {
		return 0, err
	}
	if r.failed != nil {
		r.settle() // what failed beside it is tried again, too
		err := r.failed
		r.failed = nil
		if err := r.report(err); err != nil {
			return 0, err
		}
	}
	if r.job.PauseWanted() {
		r.settle()
		if err := r.job.Checkpoint(ctx); err != nil {
			return 0, err
		}
		r.notYet = time.Time{}
		if r.job.WasStopped() {
			r.failed = nil // whatever else failed then is tried again
		}
	}
	now := time.Now()
	r.limiter.SetSpeed(r.job.Speed(), now)
	return max(r.limiter.Wait(now), r.notYet.Sub(now)), nil
}

// sleep waits until something happens, or for some time if there is something to do then.
func (r *run) sleep(ctx context.Context, wait time.Duration) {
	r.job.SetBusy(r.inFlight > 0)
	var late <-chan time.Time
	if wait > 0 {
		timer := time.NewTimer(wait)
		defer timer.Stop()
		late = timer.C
	}
	select {
	case done := <-r.results:
		r.ended(done)
	case <-late:
	case <-r.job.Wake():
	case <-ctx.Done():
	}
}

// setAside sets memory aside for a piece, as there always is while none is in flight.
func (r *run) setAside() bool {
	if r.room == 0 {
		r.room = r.memory.Take(pieceSize)
	}
	return r.room > 0
}

// step looks for what the device lacks, and hands it to a goroutine of its own.
func (r *run) step(ctx context.Context, size int64) error {
	gate := r.backend.Gate()
	if err := r.job.Enter(ctx, gate); err != nil {
		return err
	}
	r.job.SetBusy(true)
	piece, missing, err := r.next(ctx, size)
	if err != nil || !missing {
		gate.Leave()
		r.failed = err
		return nil
	}
	r.limiter.Take(piece.end-piece.off, time.Now())
	room := r.memory.Keep(r.room, piece.end-piece.off)
	r.room = 0
	r.inFlight++
	go func() {
		done := r.copy(ctx, piece, room)
		r.memory.Give(room)
		gate.Leave()
		r.results <- done
	}()
	return nil
}

// next is the next piece, if there is one where the search came to.
func (r *run) next(ctx context.Context, size int64) (piece span, missing bool, err error) {
	if len(r.again) > 0 {
		piece = r.again[0]
		r.again = r.again[1:]
		return piece, true, nil
	}
	n, missing, err := r.missing(ctx, r.at, size-r.at)
	if err != nil {
		return span{}, false, readFailed(err, r.at, size-r.at)
	}
	if missing {
		n = min(n, r.limiter.Piece(leastPiece, r.room))
	} else {
		r.job.Progress.Done(n)
	}
	piece = span{r.at, r.at + n}
	r.at = piece.end
	return piece, missing, nil
}

// copy brings a piece to the device, through a buffer of at most room bytes.
func (r *run) copy(ctx context.Context, piece span, room int64) result {
	done := result{span: piece, done: piece.off}
	for done.done < piece.end && done.err == nil {
		var n, copied int64
		n, copied, done.err = r.populate(ctx, done.done, min(piece.end-done.done, room))
		done.done, done.copied = done.done+n, done.copied+copied
	}
	return done
}

// ended takes note of what came of a piece.
func (r *run) ended(done result) {
	r.inFlight--
	r.crew.Done(done.copied, time.Now())
	r.job.Progress.Done(done.done - done.off)
	r.limiter.Take(done.copied-(done.end-done.off), time.Now())
	if done.err == nil {
		r.retry = retryFirst
		return
	}
	r.again = append(r.again, span{done.done, done.end})
	if r.failed == nil {
		r.failed = done.err
	}
}

// settle waits for what is in flight.
func (r *run) settle() {
	for r.inFlight > 0 {
		r.ended(<-r.results)
	}
	r.memory.Give(r.room)
	r.room = 0
	r.job.SetBusy(false)
}

// flush makes durable what was copied.
func (r *run) flush(ctx context.Context) error {
	for {
		_, err := r.look(ctx)
		if err != nil {
			return err
		}
		if wait := time.Until(r.notYet); wait > 0 {
			r.sleep(ctx, wait)
			continue
		}
		gate := r.backend.Gate()
		if err := r.job.Enter(ctx, gate); errors.Is(err, job.ErrPause) {
			continue
		} else if err != nil {
			return err
		}
		err = r.filter.device.Flush(ctx)
		gate.Leave()
		if err == nil {
			return nil
		}
		r.failed = &failure{err: err}
	}
}

// report does what the policy says about a failed request. It returns the error if that ends the job.
func (r *run) report(err error) error {
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
