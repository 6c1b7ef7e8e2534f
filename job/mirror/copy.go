// SPDX-License-Identifier: Apache-2.0

package mirror

import (
	"context"
	"errors"
	"time"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/job/digest"
)

// How many copies are in flight at first: one while the kernel copies, which does one after the other to the same file.
const firstWorkers, firstOffloading = 2, 1

const (
	// copyUnit is the unit in which data is copied to a target that is zero, where the granularity is not finer: smaller holes
	// are copied with the data around them, so that the target is not cut into pieces that are dear to keep.
	copyUnit = 8 << 10
	// zeroUnit is the unit in which zeroes are told from data where a request has to be sent for them.
	zeroUnit = 64 << 10
)

// result is what came of a copy.
type result struct {
	o                    *op
	sourceErr, targetErr error
	off, len             int64 // of the failed request
	claimed              int64 // bytes of the claim
	data                 int64 // bytes that were copied or zeroed at a cost
	took                 time.Duration
	memory               int64 // bytes that buffers may take
	marked               bool  // the claim is, until it is given up

	// Of a comparison.
	verify   bool
	at       int64          // how far it came
	compared int64          // bytes up to there
	differ   []span         // sectors
	leaves   *digest.Leaves // nil without digests
}

// copy carries out a claim of the copy: data is read and written, zeroes are written where the target has something else.
// The caller is inside the job's gate.
func (m *Mirror) copy(ctx context.Context, o *op, memory int64) result {
	r := result{o: o, claimed: o.end - o.off, memory: memory}
	f := m.filter
	r.off, r.len = o.off, o.end-o.off
	r.targetErr = m.keeper.copying(o.off, r.claimed)
	r.marked = r.targetErr == nil
	for at := o.off; at < o.end && r.sourceErr == nil && r.targetErr == nil; {
		r.off = at
		ahead := min(m.planner.d.Size()-at, max(o.end-at, zeroPiece))
		if m.opts.Commit != CommitNot {
			// What nobody has above the target is the target's own, and stays as it is.
			length, above, err := m.opts.Source.AllocatedAbove(ctx, m.opts.Target, at, ahead)
			if err != nil {
				r.sourceErr, r.len = err, o.end-at
				break
			}
			if !above {
				at += length
				continue
			}
			ahead = length
		}
		extent, err := f.source.BlockStatus(ctx, at, ahead)
		if err != nil {
			r.sourceErr, r.len = err, o.end-at
			break
		}
		end, zero := m.fit(o, at, extent)
		if zero {
			m.mu.Lock()
			m.hint = span{at, at + extent.Len}
			m.mu.Unlock()
			r.targetErr, r.len = m.copyZero(o, at, end, &r), end-at
		} else {
			at = m.offload(ctx, o, at, end, &r)
			if end-at > m.piece {
				end = min(end, m.giveBackFrom(o, at+m.piece))
			}
			m.copyPieces(ctx, o, at, end, &r)
			if r.data >= m.most() {
				m.giveBackFrom(o, end) // it was taken for a hole, and guests wait for it
			}
		}
		at = end
	}
	return r
}

// fit cuts an extent of the source to the claim, and to units.
func (m *Mirror) fit(o *op, at int64, extent block.Extent) (end int64, zero bool) {
	unit := m.zeroUnit()
	if o.targetZero && m.planner.whole == nil {
		unit = min(unit, copyUnit) // a hole is skipped, which costs nothing
	}
	end = at + extent.Len
	if extent.Status&block.StatusZero != 0 {
		if end >= o.end {
			return o.end, true
		}
		if end &^= unit - 1; end > at {
			return end, true
		}
	}
	return min((max(end, at+1)+unit-1)&^(unit-1), o.end), false
}

// zeroUnit is the unit in which zeroes are told from data.
func (m *Mirror) zeroUnit() int64 {
	switch chunk := m.planner.d.Granularity(); {
	case m.planner.whole != nil:
		return chunk // zeroes that are not a whole cluster may not be kept by a target that reads as zero
	case m.opts.Commit != CommitNot:
		return 512 // layers have clusters already
	default:
		return min(zeroUnit, chunk)
	}
}

// giveBackFrom gives back the chunks of a claim that lie behind a byte, and returns where the claim ends.
func (m *Mirror) giveBackFrom(o *op, at int64) (end int64) {
	m.mu.Lock()
	var woken []*op
	if from := m.planner.d.Outward(o.off, at-o.off).End * m.planner.d.Granularity(); from < o.end {
		m.planner.giveBack(o, from)
		woken = m.takeWokenLocked()
	}
	end = o.end
	m.mu.Unlock()
	wake(woken)
	return end
}

// copyZero brings a range to the target that the source reads as zero.
func (m *Mirror) copyZero(o *op, at, end int64, r *result) error {
	m.mu.Lock()
	write := m.planner.copyZero(o, at, end)
	if write {
		m.bytes.Zeroed += end - at
	} else {
		m.bytes.Skipped += end - at
	}
	m.mu.Unlock()
	if !write {
		return nil
	}
	if !m.filter.target.Node().CanZeroUnmap() {
		r.data += end - at
	}
	return m.filter.target.WriteZeroes(m.given(o.epoch), at, end-at, block.MayUnmap)
}

// copyPieces copies a range of data through a buffer of at most a piece.
func (m *Mirror) copyPieces(ctx context.Context, o *op, at, end int64, r *result) {
	for at < end && r.sourceErr == nil && r.targetErr == nil {
		step := min(end-at, m.piece, r.memory)
		b := block.GetBuffer(int(step))
		r.off, r.len = at, step
		if r.sourceErr = m.filter.source.ReadAt(ctx, b.B, at); r.sourceErr == nil {
			r.targetErr = m.writeFound(o, b.B, at, r)
		}
		b.Release()
		r.data += step
		at += step
	}
}

// writeFound writes what was read from the source.
func (m *Mirror) writeFound(o *op, p []byte, at int64, r *result) error {
	return m.eachFound(p, at, func(p []byte, at int64, zero bool) error {
		if zero {
			return m.copyZero(o, at, at+int64(len(p)), r)
		}
		return m.writeData(o, p, at)
	})
}

// eachFound calls do with the runs of what was read from the source that are alike. Where the target looks for zeroes, so does
// the mirror: what turns out to be zero takes the way of zeroes, and is skipped if the target has it.
func (m *Mirror) eachFound(p []byte, at int64, do func(p []byte, at int64, zero bool) error) error {
	if m.detect == block.DetectZeroesOff {
		return do(p, at, false)
	}
	unit := max(m.zeroUnit(), 4<<10)
	for len(p) > 0 {
		n := unitEnd(at, unit, len(p))
		zero := block.IsZero(p[:n])
		for n < len(p) {
			next := unitEnd(at+int64(n), unit, len(p)-n)
			if block.IsZero(p[n:n+next]) != zero {
				break
			}
			n += next
		}
		if err := do(p[:n], at, zero); err != nil {
			return err
		}
		p, at = p[n:], at+int64(n)
	}
	return nil
}

// unitEnd is how many bytes from at on belong to one unit, at most length.
func unitEnd(at, unit int64, length int) int { return int(min(unit-at%unit, int64(length))) }

func (m *Mirror) writeData(o *op, p []byte, at int64) error {
	m.mu.Lock()
	m.planner.copyData(o, at, at+int64(len(p)))
	m.bytes.Copied += int64(len(p))
	m.mu.Unlock()
	return m.filter.target.WriteAt(m.given(o.epoch), p, at, 0)
}

// settle tells the planner and the progress what came of a copy.
func (m *Mirror) settle(r *result) {
	off := r.o.off
	m.mu.Lock()
	done := r.o.end - r.o.off
	m.planner.endCopy(r.o, r.sourceErr != nil, r.targetErr != nil)
	woken := m.takeWokenLocked()
	switch {
	case r.sourceErr != nil:
		m.failLocked(failure{true, r.off, r.len, r.sourceErr})
	case r.targetErr != nil:
		m.failTargetLocked(r.off, r.len, r.targetErr)
	}
	if r.sourceErr == nil && r.targetErr == nil {
		m.progress.Done(done)
		m.flow.copied += done
	}
	m.mu.Unlock()
	wake(woken)
	if r.marked {
		m.keeper.copied(off, r.claimed)
	}
	opPool.Put(r.o)
	r.o = nil
}

// failLocked keeps a failure for the loop; one at a time is enough, since what failed is dirty and tried again.
func (m *Mirror) failLocked(f failure) {
	if m.failed == nil {
		m.failed = &f
	}
}

// targetFailed notes that a request of a guest, or a flush, failed on the target.
func (m *Mirror) targetFailed(off, n int64, err error) {
	m.mu.Lock()
	m.failTargetLocked(off, n, err)
	m.mu.Unlock()
}

// failTargetLocked notes that a request to the target failed, and whether it may still be carried out.
func (m *Mirror) failTargetLocked(off, n int64, err error) {
	if n > 0 && block.IsSuspect(err) {
		mask := max(m.opts.Target.Limits().RequestAlign, 1) - 1 // the request was padded
		end := min((off+n+mask)&^mask, m.planner.d.Size())
		m.planner.suspect(off&^mask, end-off&^mask)
	}
	if errors.Is(err, block.ErrDisconnected) || errors.Is(err, errSilent) {
		return // what failed is dirty, and the loop waits until the target is back, or fails otherwise
	}
	m.failLocked(failure{false, off, n, err})
}

// flushTarget makes what was written to the target durable, unless nothing was; a silent one is asked all the same. Only one
// flush runs at a time.
func (m *Mirror) flushTarget(ctx context.Context) (ok bool) {
	select {
	case m.flushing <- struct{}{}:
	case <-ctx.Done():
		return false
	}
	defer func() { <-m.flushing }()
	m.mu.Lock()
	needed := m.planner.beginFlush() || m.planner.silent
	m.mu.Unlock()
	if !needed {
		return true
	}
	err := m.filter.target.Flush(ctx)
	m.mu.Lock()
	if errors.Is(err, errSilent) {
		m.planner.giveUpFlush()
	} else {
		if err != nil {
			m.keeper.lostLocked()
		}
		m.planner.endFlush(err == nil)
	}
	if err != nil && !errors.Is(err, errSilent) {
		m.failTargetLocked(0, 0, err)
		m.opts.Target.ForgiveLoss() // nobody else writes to the target, and what was lost is dirty again
	}
	m.mu.Unlock()
	if err != nil {
		m.job.Poke()
	}
	return err == nil
}
