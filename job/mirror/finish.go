// SPDX-License-Identifier: Apache-2.0

package mirror

import (
	"bytes"
	"context"
	"errors"
	"time"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/job/mirror/intent"
)

// errAgain ends a try to complete that has to be made again: a failure is noted, or a pause is wanted, and the loop deals with it.
var errAgain = errors.New("completion is tried again")

// advance goes to the next phase when this one is done: ready, pending, over. again says that the loop should look around
// at once.
func (l *loop) advance(ctx context.Context, complete bool) (again bool, err error) {
	m := l.m
	m.mu.Lock()
	failed, silent := m.failed != nil, m.planner.silent
	caughtUp := m.planner.caughtUp()
	rest, unverified := m.planner.d.SetBytes(), m.planner.unverified()
	m.mu.Unlock()
	hungry := !l.starved.IsZero() && time.Since(l.starved) >= starveTime && l.inFlight == 0 && rest <= l.finalRest()
	switch {
	case failed:
		return true, nil
	case time.Now().Before(l.notYet):
		return false, nil // something failed and is to be tried again, but not at once
	case silent:
		return false, nil
	case m.opts.Commit == CommitLower && (!caughtUp || l.inFlight > 0):
		return false, nil // nobody makes it dirty again
	case l.futile && rest > 0 && !hungry:
		return false, nil // guests would be drained for nothing
	case l.pending && l.final && l.summed:
		return true, l.complete(ctx)
	case l.final && l.summed && !l.pending:
		if rest > l.finalRest() || unverified > l.verifyRestMost() || l.inFlight > 0 {
			return false, nil
		}
		return true, l.complete(ctx)
	case hungry:
		l.starved = time.Time{}
		return true, l.drained(ctx, func(*block.Tx) error { return l.copyRest(ctx) })
	case !caughtUp || l.inFlight > 0 || l.pending:
		return false, nil
	case !m.job.IsReady():
		if ok, err := l.flush(ctx); err != nil || !ok {
			return true, err
		}
		l.refresh()
		if err := m.keeper.phase(intent.Ready); err != nil {
			m.keeper.tell(err) // that it was ready once is all that is lost
		}
		m.beginVerify()
		m.job.Ready()
		return true, nil
	case complete && !l.final && unverified <= l.verifyRestMost():
		if ok, err := l.flush(ctx); err != nil || !ok {
			return true, err
		}
		l.pending = m.job.EnterPending()
		return true, nil
	}
	return false, nil
}

// flush makes the target durable; it is not ok if that failed, which the loop finds noted.
func (l *loop) flush(ctx context.Context) (ok bool, err error) {
	if err := l.enter(ctx); err != nil {
		return false, err
	}
	defer l.m.backend.Gate().Leave()
	return l.m.flushTarget(l.m.reach()), nil
}

// complete ends the job with guests drained: the rest is copied and flushed, then the users of the source are given the
// target, or the source back after a soft cancel.
func (l *loop) complete(ctx context.Context) error {
	m := l.m
	defer m.keeper.hold()()
	return l.drained(ctx, func(tx *block.Tx) error {
		for equal := false; !equal; {
			err := l.copyRest(ctx)
			if err == nil {
				equal, err = m.compareSuspects(ctx)
			}
			if err == nil && equal {
				equal, err = l.verifyRest(ctx)
			}
			if err != nil {
				return err
			}
		}
		l.refresh()
		if !l.pending && !m.job.EnterPending() {
			return errAgain
		}
		successor := m.opts.Target
		if _, soft := m.job.CompleteWanted(); soft { // no verb changes that any more
			successor = m.opts.Source
		}
		if err := m.job.Commit(); err != nil {
			return err
		}
		if m.opts.OnPivot != nil && successor == m.opts.Target {
			if err := m.opts.OnPivot(ctx, tx); err != nil {
				return err
			}
		}
		// If it fails later, the job ends all the same and does not come back.
		over := intent.Ended
		if successor == m.opts.Target {
			over = intent.Pivoted
		}
		if err := m.keeper.phase(over); err != nil {
			return err
		}
		if successor == m.opts.Target && m.opts.Commit != CommitLower {
			if err := tx.MoveBitmaps(m.opts.Source, m.opts.Target); err != nil {
				return err
			}
		}
		if b := m.opts.Bitmap; b != nil {
			// Guests are held still, so no write falls between the copy and the clearing.
			tx.OnCommit(func() error {
				b.Clear()
				return nil
			})
		}
		return m.extract(tx, successor)
	})
}

// drained runs f while no guest's request is in flight. If f says errAgain, the loop finds out why.
func (l *loop) drained(ctx context.Context, f func(*block.Tx) error) error {
	m := l.m
	l.settleAll()
	ctx, w := m.job.BeginWait(ctx)
	defer w.End()
	err := m.graph.Change(ctx, func(tx *block.Tx) error {
		m.hold() // others wait for the graph, too
		defer m.release()
		if err := tx.Drain(ctx, m.backend.Gate(), m.node); err != nil {
			return err
		}
		if err := w.Over(); err != nil {
			return err
		}
		return f(tx)
	})
	if errors.Is(err, errAgain) {
		l.futile = true
		return nil
	}
	return err
}

// copyRest copies what is dirty and flushes, until nothing is dirty and nothing unflushed. Guests are drained.
func (l *loop) copyRest(ctx context.Context) error {
	m := l.m
	l.troubled = false
	defer l.spare()
	for {
		for l.inFlight < l.workers() && !l.troubled && l.room() {
			if started, err := l.startCopy(ctx, time.Now()); err != nil {
				l.settleAll()
				return err
			} else if !started {
				break
			}
		}
		if l.inFlight > 0 {
			l.ended(<-m.results)
			continue
		}
		m.mu.Lock()
		failed, left := m.failed != nil, m.planner.d.Len()
		m.mu.Unlock()
		switch {
		case failed || l.troubled:
			return errAgain
		case left > 0:
			continue
		case !m.flushTarget(m.reach()):
			return errAgain
		}
		m.mu.Lock()
		left = m.planner.d.Len()
		m.mu.Unlock()
		if left == 0 {
			return nil
		}
		// The flush was the first request of a new session, and what was not flushed in the old one is dirty now.
	}
}

// compareSuspects reads back what a request that failed may have changed since. What differs is dirty again. What is equal
// now stays suspect: the next try to complete is another look.
func (m *Mirror) compareSuspects(ctx context.Context) (equal bool, err error) {
	m.suspectTarget()
	m.mu.Lock()
	ranges := m.planner.suspected()
	m.mu.Unlock()
	memory := m.memory.Take(2 * pieceSize) // nothing is in flight
	defer m.memory.Give(memory)
	equal = true
	for _, r := range ranges {
		for at := r.off; at < r.end; at += memory / 2 {
			same, err := m.compare(ctx, at, min(memory/2, r.end-at))
			if err != nil {
				return false, err
			}
			equal = equal && same
		}
	}
	return equal, nil
}

// suspectTarget takes in what the target itself suspects: requests of whoever used it before may be among them.
func (m *Mirror) suspectTarget() {
	var ranges []span
	m.opts.Target.Suspects(func(off, n int64) { ranges = append(ranges, span{off, off + n}) })
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(ranges) > 0 {
		m.keeper.lostLocked()
	}
	for _, r := range ranges {
		m.planner.suspect(r.off, r.end-r.off)
	}
}

// compare reads a range of both disks, and makes it dirty if they differ.
func (m *Mirror) compare(ctx context.Context, off, n int64) (same bool, err error) {
	a, b := block.GetBuffer(int(n)), block.GetBuffer(int(n))
	defer a.Release()
	defer b.Release()
	if err := m.filter.source.ReadAt(ctx, a.B, off); err != nil {
		return false, m.again(failure{true, off, n, err})
	}
	err = m.filter.target.ReadAt(m.reach(), b.B, off)
	switch {
	case errors.Is(err, block.ErrDisconnected), errors.Is(err, errSilent):
		err = errAgain // the copy of the range finds out whether the target comes back
	case err != nil:
		return false, m.again(failure{false, off, n, err})
	case bytes.Equal(a.B, b.B):
		return true, nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	chunks := m.planner.d.Outward(off, n)
	m.planner.d.Set(chunks)
	m.planner.z.Clear(chunks)
	return false, err
}

// again notes a failure for the loop.
func (m *Mirror) again(f failure) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.failLocked(f)
	return errAgain
}
