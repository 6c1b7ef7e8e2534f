// SPDX-License-Identifier: Apache-2.0

package mirror

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/blkmirror/blkmirror/block"
)

// A server may say nothing while its connection lives: its process is stopped, or its disk hangs. The target counts as silent
// when a guest's request has waited for it, in whatever way, for patience, or when guests are drained and it has owed an answer
// for so long. Then all requests to it are given up at once, and with them end all claims and locks that others wait for. Until
// it answers a request again guests' writes go to the source alone, and the loop sends one small request at a time.

// patience is how long guests wait for the target. Their drivers give up a request after 30 s or so, and healthy servers answer
// within one.
const patience = 2 * time.Second

var errSilent = errors.New("the target gives no answer")

// watch looks after the requests to a target that may go silent.
type watch struct {
	m        *Mirror
	began    time.Time
	underWay atomic.Int32 // requests to the target
	owing    atomic.Int64 // since when it owes the next answer, nanoseconds after began; means nothing if none is under way

	// Guarded by Mirror.mu.
	ctx    context.Context // of the requests of the planner's epoch
	giveUp context.CancelCauseFunc
	holds  int         // who holds guests
	timer  *time.Timer // while there are any
}

func newWatch(m *Mirror) *watch {
	w := &watch{m: m, began: time.Now()}
	w.ctx, w.giveUp = context.WithCancelCause(m.targetCtx)
	return w
}

func (w *watch) note() { w.owing.Store(int64(time.Since(w.began))) }

func (w *watch) begin() {
	if w.underWay.Add(1) == 1 {
		w.note()
	}
}

func (w *watch) end(err error) error {
	w.underWay.Add(-1)
	w.note()
	if err == nil {
		w.m.mu.Lock()
		w.m.planner.silent = false
		w.m.mu.Unlock()
	}
	return err
}

// silentLocked gives up all requests to the target.
func (m *Mirror) silentLocked() {
	w := m.watch
	m.planner.fallSilent()
	w.giveUp(errSilent)
	w.ctx, w.giveUp = context.WithCancelCause(m.targetCtx)
}

// reach is the context for requests to the target that belong together, from now on.
func (m *Mirror) reach() context.Context {
	if m.watch == nil {
		return m.targetCtx
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.watch.ctx
}

// given is the context for requests of an epoch of the planner, which has ended if that has.
func (m *Mirror) given(epoch uint64) context.Context {
	if m.watch == nil {
		return m.targetCtx
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if epoch == m.planner.epoch {
		return m.watch.ctx
	}
	return ended
}

// ended is a context that has.
var ended = func() context.Context {
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(errSilent)
	return ctx
}()

// guard lets a guest's request of an epoch wait for the target, if it has done so for some time already, until it is stopped.
func (m *Mirror) guard(epoch uint64, waited time.Duration) *time.Timer {
	if m.watch == nil {
		return nil
	}
	// Who has waited for others as long as for the target may find that it is well.
	left := max(patience-waited, patience/4)
	return time.AfterFunc(left, func() {
		m.mu.Lock()
		late := m.planner.epoch == epoch
		if late {
			m.silentLocked()
		}
		m.mu.Unlock()
		if late {
			m.job.Poke()
		}
	})
}

func unguard(t *time.Timer) {
	if t != nil {
		t.Stop()
	}
}

// hold says that guests are held until release, and wait for what is under way on the target.
func (m *Mirror) hold() {
	w := m.watch
	if w == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if w.holds++; w.holds == 1 {
		began := time.Since(w.began)
		w.timer = time.AfterFunc(w.boundLocked(), func() { w.look(began) })
	}
}

// boundLocked is how long the target may owe an answer to guests that are held: not so long again if it is silent already.
func (w *watch) boundLocked() time.Duration {
	if w.m.planner.silent {
		return promptTime
	}
	return patience
}

func (m *Mirror) release() {
	w := m.watch
	if w == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if w.holds--; w.holds == 0 {
		w.timer.Stop()
	}
}

// look sees whether the target has owed an answer for too long to guests that have been held since some time.
func (w *watch) look(held time.Duration) {
	m := w.m
	m.mu.Lock()
	if w.holds == 0 {
		m.mu.Unlock()
		return
	}
	left := w.boundLocked()
	if w.underWay.Load() > 0 {
		left -= time.Since(w.began) - max(held, time.Duration(w.owing.Load()))
	}
	silent := left <= 0
	if silent {
		m.silentLocked()
		left = w.boundLocked()
	}
	w.timer.Reset(left)
	m.mu.Unlock()
	if silent {
		m.job.Poke()
	}
}

// BeginDrain and EndDrain: those who drain guests wait for the requests of the job, too.
func (f *filter) BeginDrain() { f.m.hold() }

// EndDrain takes back one BeginDrain.
func (f *filter) EndDrain() { f.m.release() }

// targetEdge is the way to the target. All requests of the mirror go over it.
type targetEdge struct {
	*block.Edge
	watch *watch // nil for a target that cannot go silent
}

func (t targetEdge) ReadAt(ctx context.Context, p []byte, off int64) error {
	if t.watch == nil {
		return t.Edge.ReadAt(ctx, p, off)
	}
	t.watch.begin()
	return t.watch.end(t.Edge.ReadAt(ctx, p, off))
}

func (t targetEdge) WriteAt(ctx context.Context, p []byte, off int64, flags block.Flags) error {
	if t.watch == nil {
		return t.Edge.WriteAt(ctx, p, off, flags)
	}
	from, n, err := t.watch.send(off, int64(len(p)))
	if err != nil {
		return err
	}
	t.watch.begin()
	err = t.watch.end(t.Edge.WriteAt(ctx, p, off, flags))
	t.watch.sent(from, n, err)
	return err
}

func (t targetEdge) WriteZeroes(ctx context.Context, off, n int64, flags block.Flags) error {
	if t.watch == nil {
		return t.Edge.WriteZeroes(ctx, off, n, flags)
	}
	from, length, err := t.watch.send(off, n)
	if err != nil {
		return err
	}
	t.watch.begin()
	err = t.watch.end(t.Edge.WriteZeroes(ctx, off, n, flags))
	t.watch.sent(from, length, err)
	return err
}

func (t targetEdge) Flush(ctx context.Context) error {
	if t.watch == nil {
		return t.Edge.Flush(ctx)
	}
	t.watch.begin()
	return t.watch.end(t.Edge.Flush(ctx))
}

func (t targetEdge) BlockStatus(ctx context.Context, off, n int64) (block.Extent, error) {
	if t.watch == nil {
		return t.Edge.BlockStatus(ctx, off, n)
	}
	t.watch.begin()
	e, err := t.Edge.BlockStatus(ctx, off, n)
	return e, t.watch.end(err)
}

// ---- The loop

// listen says whether the target is silent. If it was of late, copies begin small again.
func (l *loop) listen() bool {
	m := l.m
	m.mu.Lock()
	silent, epoch := m.planner.silent, m.planner.epoch
	m.mu.Unlock()
	if epoch != l.epoch {
		l.step, l.epoch = m.planner.d.Granularity(), epoch
	}
	return silent
}

// piece is the most data in one copy.
func (l *loop) piece() int64 {
	if l.step > 0 {
		return min(l.step, l.m.piece)
	}
	return l.m.most()
}

// workers is the most copies in flight.
func (l *loop) workers() int {
	if l.step > 0 {
		return 1
	}
	return l.crew.Size()
}

// finalRest is how much may be dirty when guests are drained.
func (l *loop) finalRest() int64 {
	if l.step > 0 {
		return l.step
	}
	return finalRest
}

// grow lets the next copy be larger if this one was answered soon.
func (l *loop) grow(r result) {
	if l.step == 0 || r.took > promptTime {
		return
	}
	if l.step *= 2; l.step > l.m.piece {
		l.step = 0
	}
}

// knock asks a silent target for an answer when there is nothing to copy.
func (l *loop) knock(ctx context.Context) error {
	m := l.m
	if err := l.enter(ctx); err != nil {
		return err
	}
	l.inFlight++
	go func() {
		r := result{}
		if !m.flushTarget(m.reach()) {
			r.targetErr = errSilent
		}
		m.backend.Gate().Leave()
		m.results <- r
	}()
	return nil
}
