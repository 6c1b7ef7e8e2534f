// SPDX-License-Identifier: Apache-2.0

package mirror

import (
	"bytes"
	"context"
	"errors"
	"time"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/job/digest"
)

// A mirror that verifies compares its disks once over, from when it is ready, while guests write. A piece is claimed as a copy
// claims it, so that no guest's write goes to either disk meanwhile but those of background mode, which are known. What differs
// without a reason is dirty again, and is compared again after it was copied. The job completes when all was found equal.

const (
	// sector is the unit in which differences are counted.
	sector = 512
	// How long the loop waits before it looks again for something to compare when guests hold all that is left.
	verifyAgain = 20 * time.Millisecond
	// How often differences are told at most, and how many ranges at once. What lies beyond is told as one range.
	tellEvery = time.Second
	tellMost  = 16
	// How often it is recorded how far the comparison is.
	keepPassEvery = 5 * time.Second
)

var errDiffersAgain = errors.New("The target differs from the source again where it did before, and was copied since")

// Difference is a range in which the target differed from the source.
type Difference struct {
	Off, Len int64
	Bytes    int64 // of the sectors of 512 bytes in it that differed
}

// Proof is how far the comparison is.
type Proof struct {
	On        bool
	Verified  int64  // bytes that were found equal, or are equal again
	Left      int64  // bytes that are to be compared still
	Differing int64  // bytes of the sectors that differed
	Digest    Digest // once the job has completed
}

// proofLocked is a snapshot.
func (m *Mirror) proofLocked() Proof {
	v := m.planner.verify
	if !m.opts.Verify && !v.begun() {
		return Proof{}
	}
	p := Proof{On: true, Left: max(m.planner.unverified(), m.planner.staleBytes()), Differing: v.differing, Digest: m.proof.digest}
	if !v.begun() {
		p.Left = m.planner.d.Size()
	}
	p.Verified = m.planner.d.Size() - p.Left
	return p
}

// beginVerify begins the comparison, if there is to be one.
func (m *Mirror) beginVerify() {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := m.opts.Resume
	switch {
	case m.planner.verify == nil:
	case r != nil && r.Pass != nil && !m.opts.Digest: // the digests of leaves are not known any more
		m.planner.resumeVerify(r.Pass)
	case m.opts.Verify:
		if r != nil && r.Pass != nil {
			m.planner.verify.pass = r.Pass.Number
		}
		m.planner.beginVerify()
	}
}

// Verify has a job that is ready compare its disks once over, from now on.
func (m *Mirror) Verify() error {
	if err := m.job.AllowChange(); err != nil {
		return err
	}
	complete, _ := m.job.CompleteWanted()
	switch {
	case m.planner.verify == nil:
		return invalid("Job '%s' cannot compare its disks: they are meant to be equal with sync mode 'full' alone", m.opts.JobID)
	case complete || !m.job.IsReady():
		return invalid("Job '%s' compares its disks only while it is ready, and not about to complete", m.opts.JobID)
	}
	if err := m.nextPass(); err != nil {
		return err
	}
	m.keeper.tell(m.keeper.pass()) // if it fails, a restart forgets this pass, which is no worse than not to begin it
	m.job.Poke()
	return nil
}

func (m *Mirror) nextPass() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.planner.verify.begun() && !m.proof.finished {
		return invalid("Job '%s' compares its disks already, and has %d bytes left", m.opts.JobID, m.planner.unverified())
	}
	m.planner.beginVerify()
	m.proof.finished = false
	return nil
}

// wanted says whether there is something to compare.
func (m *Mirror) wanted() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.planner.verify.wanted() != nil
}

// ---- The loop

// verify starts comparisons while there is nothing that can be copied, which it would be after wait if that is not zero. It
// returns how long the loop has to wait at most; zero for until something happens.
func (l *loop) verify(ctx context.Context, wait time.Duration) (time.Duration, error) {
	m := l.m
	within := func(d time.Duration) time.Duration {
		if wait == 0 {
			return d
		}
		return min(wait, d)
	}
	for m.wanted() && l.inFlight < l.workers() {
		now := time.Now()
		if hold := max(l.slack(now), l.notYet.Sub(now), l.unfound.Sub(now)); hold > 0 {
			return within(hold), nil
		}
		if !l.room() {
			return wait, nil
		}
		started, err := l.startVerify(ctx, now)
		if err != nil {
			return 0, err
		}
		if !started {
			l.unfound = now.Add(verifyAgain)
			l.chase.misses++
		}
	}
	return wait, nil
}

// startVerify claims the next piece to compare and hands it to a goroutine of its own.
func (l *loop) startVerify(ctx context.Context, now time.Time) (started bool, err error) {
	m := l.m
	gate := m.backend.Gate()
	if err := l.enter(ctx); err != nil {
		return false, err
	}
	o := opPool.Get().(*op)
	if !m.claimVerify(o, l.largest(min(l.piece(), m.piece))) {
		gate.Leave()
		opPool.Put(o)
		return false, nil
	}
	l.spend(o.end-o.off, now)
	memory := m.memory.Keep(l.memory, 2*(o.end-o.off))
	l.memory = 0
	l.inFlight++
	m.job.SetBusy(true)
	go func() {
		began := time.Now()
		r := m.verify(ctx, o, memory)
		r.took = time.Since(began)
		m.memory.Give(memory)
		m.settleVerify(&r)
		gate.Leave()
		m.results <- r
	}()
	return true, nil
}

// claimVerify claims the next piece to compare, of at most limit bytes if it is data.
func (m *Mirror) claimVerify(o *op, limit int64) bool {
	for {
		m.mu.Lock()
		zeroLimit := int64(zeroPiece)
		if limit < m.piece {
			zeroLimit = limit // a speed is set
		}
		f := m.planner.nextVerify(o, limit, m.proof.hint, zeroLimit)
		m.mu.Unlock()
		if f != foundSlice {
			return f == foundWork
		}
	}
}

// verifyRest compares what is left with guests drained. It says whether all is equal now; what is not is dirty.
func (l *loop) verifyRest(ctx context.Context) (equal bool, err error) {
	m := l.m
	if m.planner.verify == nil {
		return true, nil
	}
	m.mu.Lock()
	unverified := m.planner.unverified()
	m.mu.Unlock()
	if unverified > l.verifyRestMost() || !l.seek(true) {
		return false, errAgain // more was copied than can be compared now, or another pass has begun
	}
	l.troubled = false
	defer l.spare()
	for {
		for l.inFlight < l.workers() && !l.troubled && l.room() {
			if started, err := l.startVerify(ctx, time.Now()); err != nil {
				l.settleAll()
				return false, err
			} else if !started {
				break
			}
		}
		if l.inFlight > 0 {
			l.ended(<-m.results)
			continue
		}
		m.mu.Lock()
		trouble := m.failed != nil || l.troubled || m.planner.silent
		dirty, left := m.planner.d.Len(), m.planner.verify.wanted() != nil
		m.mu.Unlock()
		switch {
		case trouble:
			return false, errAgain
		case dirty > 0:
			return false, nil
		case !left:
			return true, nil
		}
	}
}

// verifyRestMost is how much of a pass is left to be done with guests drained.
func (l *loop) verifyRestMost() int64 {
	if l.m.opts.Digest && l.step == 0 {
		return digestRest
	}
	return l.finalRest()
}

// ---- One comparison

// verify carries out a claim of the comparison with two buffers in so much memory. The caller is inside the job's gate.
func (m *Mirror) verify(ctx context.Context, o *op, memory int64) result {
	r := result{o: o, verify: true, claimed: o.end - o.off, at: o.off}
	target := m.given(o.epoch)
	most := max(m.piece, m.planner.d.Granularity())
	if m.opts.Digest {
		r.leaves = digest.NewLeaves(r.claimed)
	}
	for r.at < o.end && (r.data < most || r.leaves != nil && r.at%digest.LeafSize != 0) { // what was taken for a hole may be long
		n, zero := m.verifyStatus(ctx, target, &r)
		if r.sourceErr != nil || r.targetErr != nil {
			return r
		}
		if zero {
			n = min(n, o.end-r.at)
			if r.leaves != nil {
				r.leaves.Zeroes(n)
			}
			r.at += n
			continue
		}
		n = min(max(n, zeroUnit), m.piece, memory/2, o.end-r.at)
		if m.verifyData(ctx, target, n, &r); r.sourceErr != nil || r.targetErr != nil {
			return r
		}
		r.data += n
		r.at += n
	}
	// What was not flushed may be lost by now, which the flush will tell.
	if len(r.differ) > 0 && !m.flushTarget(target) {
		r.targetErr = errSilent
	}
	return r
}

// verifyStatus asks both disks how far they are alike from r.at on, and whether both are known to read as zero there.
func (m *Mirror) verifyStatus(ctx, target context.Context, r *result) (n int64, zero bool) {
	ahead := min(m.planner.d.Size()-r.at, max(r.o.end-r.at, zeroPiece))
	r.off, r.len = r.at, r.o.end-r.at
	a, err := m.filter.source.BlockStatus(ctx, r.at, ahead)
	if err != nil {
		r.sourceErr = err
		return 0, false
	}
	if a.Status&block.StatusZero == 0 {
		return a.Len, false
	}
	b, err := m.filter.target.BlockStatus(target, r.at, a.Len)
	if err != nil {
		r.targetErr = err
		return 0, false
	}
	n, zero = min(a.Len, b.Len), b.Status&block.StatusZero != 0
	if zero {
		m.mu.Lock()
		m.proof.hint = span{r.at, r.at + n}
		m.mu.Unlock()
	}
	return n, zero
}

// verifyData reads n bytes of both disks from r.at on, and notes what differs.
func (m *Mirror) verifyData(ctx, target context.Context, n int64, r *result) {
	a, b := block.GetBuffer(int(n)), block.GetBuffer(int(n))
	defer a.Release()
	defer b.Release()
	r.off, r.len = r.at, n
	if r.sourceErr = m.filter.source.ReadAt(ctx, a.B, r.at); r.sourceErr != nil {
		return
	}
	if r.targetErr = m.filter.target.ReadAt(target, b.B, r.at); r.targetErr != nil {
		return
	}
	if r.leaves != nil {
		r.leaves.Data(a.B)
	}
	if bytes.Equal(a.B, b.B) {
		return
	}
	for at := int64(0); at < n; {
		// Sectors are those of the disk, wherever extents begin: one that lay in two chunks would be told for both.
		end := min((r.at+at)&^(sector-1)+sector-r.at, n)
		if !bytes.Equal(a.B[at:end], b.B[at:end]) {
			r.differ = addSpan(r.differ, r.at+at, r.at+end)
		}
		at = end
	}
}

// settleVerify tells the planner what came of a comparison.
func (m *Mirror) settleVerify(r *result) {
	m.mu.Lock()
	switch {
	case r.sourceErr != nil:
		m.failLocked(failure{true, r.off, r.len, r.sourceErr})
	case errors.Is(r.targetErr, block.ErrDisconnected), errors.Is(r.targetErr, errSilent):
	case r.targetErr != nil:
		m.failLocked(failure{false, r.off, r.len, r.targetErr})
	default:
		r.compared = r.at - r.o.off
		var leaves []digest.Hash
		if r.leaves != nil {
			leaves = r.leaves.Done()
		}
		told, again := m.planner.endVerify(r.o, r.at, r.differ, leaves)
		if len(r.differ) > 0 {
			m.keeper.lostLocked()
		}
		for _, s := range told {
			m.proof.note(s)
		}
		if again.end > 0 {
			m.failLocked(failure{false, again.off, again.end - again.off, errDiffersAgain})
		}
	}
	m.planner.release(r.o)
	woken := m.takeWokenLocked()
	m.mu.Unlock()
	wake(woken)
	opPool.Put(r.o)
	r.o = nil
}

// ---- What is told

// proof is what the operator is to be told of the comparison.
type proof struct {
	hint     span // an extent that both disks read as zero when they were last looked at
	untold   []Difference
	next     time.Time // when the next differences may be told
	finished bool      // it was told that the comparison is over
	kept     time.Time // when it was last recorded how far it is
	digest   Digest    // once the job has completed
}

// note keeps a difference to be told.
func (p *proof) note(s span) {
	n := s.end - s.off
	if last := len(p.untold) - 1; last >= 0 && (p.untold[last].Off+p.untold[last].Len == s.off || last == tellMost-1) {
		d := &p.untold[last]
		off := min(d.Off, s.off)
		d.Off, d.Len, d.Bytes = off, max(d.Off+d.Len, s.end)-off, d.Bytes+n
		return
	}
	p.untold = append(p.untold, Difference{s.off, n, n})
}

// tell tells the operator of differences, and of the end of the comparison, if it is time. It returns when it will be if not,
// zero if there is nothing to tell.
func (m *Mirror) tell(now time.Time, last bool) time.Duration {
	if m.planner.verify == nil {
		return 0
	}
	m.mu.Lock()
	p := &m.proof
	wait := p.next.Sub(now)
	if len(p.untold) > 0 && wait > 0 && !last {
		m.mu.Unlock()
		return wait
	}
	untold := p.untold
	p.untold = nil
	if len(untold) > 0 {
		p.next = now.Add(tellEvery)
	}
	v := m.planner.verify
	over := v.begun() && v.todo.Len() == 0 && !p.finished
	p.finished = p.finished || over
	differing := v.differing
	keep := v.begun() && (over || !p.finished && now.Sub(p.kept) >= keepPassEvery)
	if keep {
		p.kept = now
	}
	m.mu.Unlock()
	if keep {
		m.keeper.passes()
	}
	for _, d := range untold {
		if m.opts.OnDifference != nil {
			m.opts.OnDifference(d)
		}
	}
	if over && m.opts.OnVerified != nil {
		m.opts.OnVerified(differing)
	}
	return 0
}
