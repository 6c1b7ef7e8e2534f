// SPDX-License-Identifier: Apache-2.0

package verify

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/job"
	"github.com/blkmirror/blkmirror/job/digest"
)

const (
	// pieceSize is the most that is read of each side in one go.
	pieceSize = digest.LeafSize
	// workers is how many pieces are in flight at first.
	workers = 2
	// How long the job waits before it tries a failed piece again under the policy ignore, at first and at most.
	retryFirst, retryMost = 50 * time.Millisecond, 5 * time.Second
	// tellEvery is how often OnPosition is called at most.
	tellEvery = 3 * time.Second
)

// span is a part of the disk, in bytes.
type span struct{ off, end int64 }

// run is the state of the job's goroutine.
type run struct {
	*Verify
	limiter  job.Limiter
	crew     job.Crew
	room     int64      // bytes set aside for the next piece
	at       int64      // where the search for the next piece begins
	alike    [2]stretch // what the disks last said of themselves
	again    []span     // pieces that failed
	inFlight int
	digests  *digests         // nil if they are not wanted
	early    map[int64]result // pieces behind the position, by their offset
	flushed  bool             // what is compared was made durable before, as far as that is possible
	tell     time.Time        // when OnPosition is due
	told     int64            // the position that it was called at
	results  chan result
	failed   *failure      // of the first piece that failed and was not dealt with
	retry    time.Duration // how long a failed piece waits next time
	notYet   time.Time     // nothing is read before
}

// stretch is how far a disk is alike, and whether it is known to read as zero there.
type stretch struct {
	end  int64
	zero bool
}

// failure is a failed request, and where it was.
type failure struct {
	target   bool // of the target, else of the device
	off, len int64
	err      error
}

// Run goes over the disks once.
func (v *Verify) Run(ctx context.Context, j *job.Job) error {
	from := v.opts.From.End
	r := &run{Verify: v, retry: retryFirst, crew: job.NewCrew(workers, job.MaxCrew), results: make(chan result, job.MaxCrew), at: from, early: map[int64]result{}, told: from,
		tell: time.Now().Add(tellEvery)}
	if v.opts.Digest {
		r.digests = &digests{early: map[int64]result{}}
	}
	err := r.compareAll(ctx)
	r.settle()
	if err != nil {
		return err
	}
	r.sum()
	s := v.State()
	if v.opts.OnEnd != nil {
		v.opts.OnEnd(s)
	}
	if s.Differing > 0 {
		return fmt.Errorf("Nodes '%s' and '%s' differ at offset %d first, and in %d bytes in all (in sectors of %d)", v.opts.Device.Name(),
			v.opts.Target.Name(), s.First, s.Differing, sector)
	}
	if !j.AutoFinalize() {
		r.tellPosition(ctx)
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
	return j.Commit()
}

// compareAll goes over the disks.
func (r *run) compareAll(ctx context.Context) error {
	size := r.opts.Device.Size()
	r.job.Progress.SetRemaining(size)
	r.job.Progress.Done(r.at)
	for {
		wait, err := r.look(ctx)
		if err != nil {
			return err
		}
		switch more := r.at < size || len(r.again) > 0; {
		case more && wait <= 0 && r.inFlight < r.crew.Size() && r.setAside():
			if err := r.step(ctx, size); err != nil && !errors.Is(err, job.ErrPause) {
				return err
			}
		case more || r.inFlight > 0:
			if r.inFlight < r.crew.Size() {
				r.crew.Idle() // it is the speed, the memory or the end that holds the job up
			}
			r.sleep(ctx, wait)
		case r.failed == nil:
			return nil
		}
	}
}

// look deals with what others want and with what failed, and says how long the next piece has to wait.
func (r *run) look(ctx context.Context) (time.Duration, error) {
	if err := context.Cause(ctx); err != nil {
		return 0, err
	}
	if f := r.failed; f != nil {
		r.settle() // what failed beside it is tried again, too
		r.failed = nil
		if err := r.report(f); err != nil {
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
	if !now.Before(r.tell) {
		r.tellPosition(ctx)
		now = time.Now()
	}
	r.limiter.SetSpeed(r.job.Speed(), now)
	return max(r.limiter.Wait(now), r.notYet.Sub(now)), nil
}

// tellPosition tells how far the job has come, if that is of use to another one.
func (r *run) tellPosition(ctx context.Context) {
	r.tell = time.Now().Add(tellEvery)
	at := r.Position().End
	if r.opts.OnPosition == nil || r.digests != nil || at == r.told {
		return
	}
	r.told = at
	ctx, w := r.job.BeginWait(ctx)
	defer w.End()
	r.opts.OnPosition(ctx)
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

// setAside sets memory aside for a piece of both disks, as there always is while none is in flight.
func (r *run) setAside() bool {
	if r.room == 0 {
		r.room = r.memory.Take(2 * pieceSize)
	}
	return r.room > 0
}

// step finds out about the next piece, and hands it to a goroutine of its own if it has to be read.
func (r *run) step(ctx context.Context, size int64) error {
	if err := r.enter(ctx); err != nil {
		return err
	}
	r.job.SetBusy(true)
	if !r.flushed {
		r.flushed = true
		r.flush(ctx)
	}
	piece, zero, failed := r.next(ctx, size)
	if failed != nil || zero {
		r.leave()
		if r.failed = failed; failed == nil {
			r.note(result{span: piece, zero: true})
		}
		return nil
	}
	r.limiter.Take(piece.end-piece.off, time.Now())
	room := r.memory.Keep(r.room, 2*(piece.end-piece.off))
	r.room = 0
	r.inFlight++
	go func() {
		done := r.compare(ctx, piece)
		r.memory.Give(room)
		r.leave()
		r.results <- done
	}()
	return nil
}

// flush makes durable what the disks read as, so that it is also what they read as after a crash. Without that no position is of use
// then. The caller is inside both gates.
func (r *run) flush(ctx context.Context) {
	if r.opts.OnPosition == nil {
		return
	}
	if errors.Join(r.device.Edge.Flush(ctx), r.target.Edge.Flush(ctx)) != nil {
		r.mu.Lock()
		r.mu.unsure = true
		r.mu.Unlock()
	}
}

// next is the next piece, and whether both disks say that they read as zero there. The caller is inside both gates.
func (r *run) next(ctx context.Context, size int64) (piece span, zero bool, failed *failure) {
	if len(r.again) > 0 {
		piece = r.again[0]
		r.again = r.again[1:]
		return piece, false, nil
	}
	for i, disk := range []*block.Backend{r.device, r.target} {
		if r.alike[i].end > r.at {
			continue
		}
		extent, err := disk.Edge.BlockStatus(ctx, r.at, size-r.at)
		if err != nil {
			return span{}, false, &failure{i == 1, r.at, size - r.at, err}
		}
		r.alike[i] = stretch{r.at + extent.Len, extent.Status&block.StatusZero != 0}
	}
	end := size
	if r.alike[0].zero && r.alike[1].zero {
		if end = min(r.alike[0].end, r.alike[1].end); end < size {
			end &^= pieceSize - 1
		}
		zero = end > r.at
	}
	if !zero {
		end = min(size, r.at+pieceSize) // holes in it are read as well
	}
	piece = span{r.at, end}
	r.at = end
	return piece, zero, nil
}

// ended takes in what came of a piece.
func (r *run) ended(done result) {
	r.inFlight--
	r.crew.Done(done.end-done.off, time.Now())
	if done.failed != nil {
		r.again = append(r.again, done.span)
		if r.failed == nil {
			r.failed = done.failed
		}
		return
	}
	r.retry = retryFirst
	r.note(done)
}

// note counts what was compared.
func (r *run) note(done result) {
	n := done.end - done.off
	if r.digests != nil {
		r.digests.add(done)
	}
	r.job.Progress.Done(n)
	r.mu.Lock()
	defer r.mu.Unlock()
	s := &r.mu.state
	if done.differing > 0 && (s.Differing == 0 || done.first < s.First) {
		s.First = done.first
	}
	s.Left -= n
	s.Differing += done.differing
	s.Verified += n - done.differing
	r.early[done.off] = done
	for p := &r.mu.position; ; {
		next, ok := r.early[p.End]
		if !ok {
			return
		}
		delete(r.early, p.End)
		if next.differing > 0 && p.Differing == 0 {
			p.First = next.first
		}
		p.End, p.Differing = next.end, p.Differing+next.differing
	}
}

// sum sets the digests, of which all pieces are there.
func (r *run) sum() {
	if r.digests == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range r.mu.state.Digests {
		r.mu.state.Digests[i] = r.digests.trees[i].Sum(r.opts.Device.Size())
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

// report does what the policy says about a failed request. It returns the error if that ends the job.
func (r *run) report(f *failure) error {
	policy, node := r.opts.OnSourceError, r.opts.Device.Name()
	if f.target {
		policy, node = r.opts.OnTargetError, r.opts.Target.Name()
	}
	action := policy.Decide(f.err)
	r.job.Report(job.Failure{Read: true, Node: node, Off: f.off, Len: f.len, Err: f.err, Action: action})
	switch action {
	case job.ActionReport:
		return f.err
	case job.ActionIgnore:
		r.notYet = time.Now().Add(r.retry)
		r.retry = min(r.retry*2, retryMost)
	}
	return nil
}
