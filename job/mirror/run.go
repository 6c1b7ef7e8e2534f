// SPDX-License-Identifier: Apache-2.0

package mirror

import (
	"context"
	"errors"
	"time"

	"github.com/blkmirror/blkmirror/job"
)

const (
	// How long a ready job in background mode lets guests' writes gather before it copies them.
	gatherTime = 100 * time.Millisecond
	// How long the job waits before it tries a failed range again under the policy ignore, at first and at most.
	retryFirst, retryMost = 50 * time.Millisecond, 5 * time.Second
	// How long guests may hold all that is dirty before they are drained for it. A chunk that is written in part all the time
	// would otherwise never be copied.
	starveTime = time.Second
	// How much may be dirty when guests are drained; it is copied while they wait.
	finalRest = 4 << 20
	// A copy that is answered within that time lets copies grow again after the target was silent: a guest's write that comes
	// behind some of them does not wait for long.
	promptTime = patience / 8
)

var errSizes = errors.New("Source and target image have different sizes")

// Run is the loop of the job.
func (m *Mirror) Run(ctx context.Context, _ *job.Job) error {
	if m.opts.Commit == CommitNot && m.opts.Source.Size() != m.opts.Target.Size() {
		return errSizes
	}
	stop := context.AfterFunc(ctx, m.giveUp)
	defer stop()
	first := firstWorkers
	if !m.kernel.off {
		first = firstOffloading
	}
	l := &loop{m: m, retry: retryFirst, crew: job.NewCrew(first, m.workers)}
	err := l.prepare(ctx)
	if err == nil {
		defer m.keeper.start()()
	}
	for err == nil && !m.gone {
		if err = l.turn(ctx); errors.Is(err, job.ErrPause) {
			err = nil // the next turn begins with it
		}
	}
	l.settleAll()
	m.tell(time.Now(), true)
	if err == nil {
		m.sumUp()
	}
	return err
}

// Clean takes the filter out of the graph if completion did not.
func (m *Mirror) Clean(error) error {
	m.keeper.end()
	m.mu.Lock()
	m.planner.stopped = true
	m.mu.Unlock()
	m.giveUp()
	m.forget()
	var errs []error
	if !m.gone {
		// Giving permissions up makes no conflict, so this should not fail. If it does, the filter stays and passes requests on to
		// the source: the job's guests, and all others, go on.
		errs = append(errs, m.remove(context.Background()))
	}
	m.memory.Close()
	if m.opts.OnEnd != nil {
		errs = append(errs, m.opts.OnEnd(m.pivoted))
	}
	return errors.Join(errs...)
}

// loop is the state of the job's goroutine.
type loop struct {
	m        *Mirror
	limiter  job.Limiter
	brake    brake
	crew     job.Crew
	memory   int64         // bytes set aside for the next copy
	moved    int64         // bytes that were copied, zeroed at a cost or compared
	inFlight int           // copies
	troubled bool          // one failed; for copyRest
	futile   bool          // the last drain was for nothing; a copy has to go well before the next
	gather   time.Time     // when the copy of what guests wrote begins; zero while nothing waits
	retry    time.Duration // how long a failed range waits next time
	notYet   time.Time     // no copy starts before
	starved  time.Time     // since when guests have held everything that is dirty; zero if they do not
	pending  bool          // the job waits for finalize
	step     int64         // most bytes of a copy while the target recovers from silence; 0 for no limit but those of all times
	epoch    uint64        // of the planner, when step was set
	unfound  time.Time     // nothing can be compared before
	final    bool          // the job is to end, and not to become pending only
	summed   bool          // the digest of the disks does not keep it from that
	chase    chase
	meter    meter
	steering steering
}

// turn looks around once, starts what can be started, and waits for something to happen.
func (l *loop) turn(ctx context.Context) error {
	if err := l.look(ctx); err != nil {
		return err
	}
	now := time.Now()
	sample, braking := l.measure(now), l.brakeFor(now)
	complete, _ := l.m.job.CompleteWanted()
	if l.m.opts.Commit == CommitLower {
		complete = true // it ends by itself
	} else if complete {
		// A guest that writes faster than the copy would keep the job from its end.
		l.lastPass()
	}
	if back := l.m.opts.Target.Waiting(); back != nil {
		l.sleep(ctx, sample, back)
		return nil
	}
	l.final = (complete || l.pending) && l.m.job.FinalizeWanted()
	l.summed = l.seek(l.final)
	wait, err := l.dispatch(ctx, complete)
	if err != nil {
		return err
	}
	if again, err := l.advance(ctx, complete); again || err != nil {
		return err
	}
	for _, d := range []time.Duration{sample, braking, l.m.tell(time.Now(), false)} {
		if wait == 0 || d > 0 && d < wait {
			wait = d
		}
	}
	l.sleep(ctx, wait, nil)
	return nil
}

// lastPass sees to it that what is dirty can only shrink.
func (l *loop) lastPass() {
	m := l.m
	m.mu.Lock()
	auto, mode := m.auto, m.planner.mode
	m.auto, m.planner.mode = false, WriteBlocking
	m.mu.Unlock()
	if auto && mode != WriteBlocking {
		m.announce(WriteBlocking, "the job was asked to complete")
	}
}

// look deals with what others want and with what failed.
func (l *loop) look(ctx context.Context) error {
	m := l.m
	if err := context.Cause(ctx); err != nil {
		return err
	}
	if f := l.takeFailure(); f != nil {
		if err := l.failed(f); err != nil {
			return err
		}
	}
	if m.job.PauseWanted() {
		m.hold() // a pause is not to wait for a silent target, either
		l.settleAll()
		m.release()
		if err := m.job.Checkpoint(ctx); err != nil {
			return err
		}
		l.notYet = time.Time{}
		if m.job.WasStopped() {
			l.takeFailure() // whatever else failed then is dirty and tried again
		}
	}
	l.refresh()
	return nil
}

func (l *loop) takeFailure() *failure {
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	f := l.m.failed
	l.m.failed = nil
	return f
}

// failed tells of a failure and does what the policy says.
func (l *loop) failed(f *failure) error {
	m := l.m
	policy, node := m.opts.OnTargetError, m.opts.Target.Name()
	if f.read {
		policy, node = m.opts.OnSourceError, m.opts.Source.Name()
	}
	action := policy.Decide(f.err)
	if l.pending {
		action = job.ActionReport // it is too late to wait
	}
	m.job.Report(job.Failure{Read: f.read, Node: node, Off: f.off, Len: f.len, Err: f.err, Action: action})
	switch action {
	case job.ActionReport:
		l.settleAll()
		return f.err
	case job.ActionIgnore:
		l.notYet = time.Now().Add(l.retry)
		l.retry = min(l.retry*2, retryMost)
	}
	return nil
}

// refresh sets what is left to do.
func (l *loop) refresh() {
	l.m.mu.Lock()
	l.m.progress.SetRemaining(l.m.planner.left())
	l.m.mu.Unlock()
}

// dispatch starts copies until nothing is left to start, and says how long to wait at most until more can be; zero for
// until something happens.
func (l *loop) dispatch(ctx context.Context, hurry bool) (time.Duration, error) {
	silent := l.listen()
	defer l.spare()
	defer func() {
		if l.step > 0 || l.inFlight < l.crew.Size() {
			l.crew.Idle()
		}
	}()
	for l.inFlight < l.workers() {
		now := time.Now()
		wait, dirty := l.holdBack(now, hurry)
		if silent && !dirty && wait == 0 {
			return 0, l.knock(ctx)
		}
		if !dirty || wait > 0 {
			return l.verify(ctx, wait)
		}
		if !l.room() {
			return 0, nil
		}
		started, err := l.startCopy(ctx, now)
		if err != nil {
			return 0, err
		}
		if !started {
			if l.starved.IsZero() {
				l.starved = now
			}
			return max(starveTime-now.Sub(l.starved), time.Millisecond), nil
		}
		l.starved = time.Time{}
	}
	return 0, nil
}

// room sets memory aside for the next copy, as there always is while none is in flight, unless that was done.
func (l *loop) room() bool {
	if l.memory == 0 {
		l.memory = l.m.memory.Take(l.m.bufferBytes())
	}
	return l.memory > 0
}

// spare gives back what was set aside and not used.
func (l *loop) spare() {
	l.m.memory.Give(l.memory)
	l.memory = 0
}

// holdBack says whether anything is dirty, and how long its copy has to wait still.
func (l *loop) holdBack(now time.Time, hurry bool) (wait time.Duration, dirty bool) {
	m := l.m
	m.mu.Lock()
	dirty, background := m.planner.d.Len() > 0, m.planner.mode == Background
	m.mu.Unlock()
	if !dirty {
		l.gather, l.starved = time.Time{}, time.Time{}
		return max(l.notYet.Sub(now), 0), false
	}
	if background && !hurry && m.job.IsReady() {
		if l.gather.IsZero() {
			l.gather = now.Add(gatherTime)
		}
		wait = l.gather.Sub(now)
	}
	return max(wait, l.slack(now), l.notYet.Sub(now)), true
}

// startCopy claims the next piece and hands it to a goroutine of its own, with the memory that was set aside.
func (l *loop) startCopy(ctx context.Context, now time.Time) (started bool, err error) {
	m := l.m
	gate := m.backend.Gate()
	if err := l.enter(ctx); err != nil {
		return false, err
	}
	o := opPool.Get().(*op)
	if !m.claimNext(o, l.largest(l.piece())) {
		gate.Leave()
		opPool.Put(o)
		return false, nil
	}
	l.spend(o.end-o.off, now)
	memory := m.memory.Keep(l.memory, o.end-o.off)
	l.memory = 0
	l.inFlight++
	m.job.SetBusy(true)
	go func() {
		began := time.Now()
		r := m.copy(ctx, o, memory)
		r.took = time.Since(began)
		m.memory.Give(memory)
		m.settle(&r)
		gate.Leave()
		m.results <- r
	}()
	return true, nil
}

// claimNext claims the next piece to copy, of at most limit bytes if it is data.
func (m *Mirror) claimNext(o *op, limit int64) bool {
	for {
		m.mu.Lock()
		zeroLimit := int64(zeroPiece)
		if limit < m.piece {
			zeroLimit = limit // a speed is set
		}
		f := m.planner.nextCopy(o, limit, m.hint, zeroLimit)
		m.mu.Unlock()
		if f != foundSlice {
			return f == foundWork
		}
	}
}

// ended takes the result of a copy.
func (l *loop) ended(r result) {
	l.inFlight--
	if l.inFlight == 0 {
		l.m.job.SetBusy(false)
	}
	l.chase.done += r.compared
	now := time.Now()
	l.spend(r.data-r.claimed, now)
	l.crew.Done(r.data, now)
	l.moved += r.data
	if r.sourceErr == nil && r.targetErr == nil {
		l.retry, l.futile = retryFirst, l.futile && r.verify
		l.grow(r)
	} else {
		l.troubled = true
	}
}

// settleAll waits until no copy is in flight.
func (l *loop) settleAll() {
	for l.inFlight > 0 {
		l.ended(<-l.m.results)
	}
}

// sleep waits until something happens, for at most wait if that is not zero. back, if it is not nil, tells that a target that
// is lost may not be lost any more: its loss is waited out here, where the job holds no claim and is in no gate, so that no
// guest waits for it.
func (l *loop) sleep(ctx context.Context, wait time.Duration, back <-chan struct{}) {
	var timer <-chan time.Time
	if wait > 0 {
		t := time.NewTimer(wait)
		defer t.Stop()
		timer = t.C
	}
	select {
	case r := <-l.m.results:
		l.ended(r)
	case <-l.m.job.Wake():
	case <-back:
	case <-timer:
	case <-ctx.Done():
	}
}
