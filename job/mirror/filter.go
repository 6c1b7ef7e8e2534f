// SPDX-License-Identifier: Apache-2.0

package mirror

import (
	"context"
	"sync"
	"time"

	"github.com/blkmirror/blkmirror/block"
)

// filter is the node on the guest's path, above the source. Every write passes it: it tells the planner, writes the
// source, and in write-blocking mode the target.
type filter struct {
	m      *Mirror
	source *block.Edge
	target targetEdge
}

var (
	_ block.Driver         = (*filter)(nil)
	_ block.ZeroWriter     = (*filter)(nil)
	_ block.ZeroUnmapper   = (*filter)(nil)
	_ block.Discarder      = (*filter)(nil)
	_ block.StatusReporter = (*filter)(nil)
	_ block.ChildPermitter = (*filter)(nil)
	_ block.BitmapReporter = (*filter)(nil)
	_ block.Delayer        = (*filter)(nil)
)

var opPool = sync.Pool{New: func() any { return new(op) }}

func (f *filter) Size() int64 { return f.source.Size() }

func (f *filter) ReadAt(ctx context.Context, p []byte, off int64) error {
	began := f.m.latency.begin()
	err := f.source.ReadAt(ctx, p, off)
	f.m.latency.end(began)
	return err
}

func (f *filter) BlockStatus(ctx context.Context, off, n int64) (block.Extent, error) {
	return f.source.BlockStatus(ctx, off, n)
}

func (f *filter) CanZeroUnmap() bool { return f.source.Node().CanZeroUnmap() }

func (f *filter) Close() error { return nil }

// begin announces a guest's write and waits for its turn.
func (f *filter) begin(ctx context.Context, r request, off, n int64) (*op, error) {
	m := f.m
	began := m.latency.begin()
	if err := m.keeper.begin(ctx, off, n); err != nil {
		return nil, err
	}
	o := opPool.Get().(*op)
	o.began = began
	m.mu.Lock()
	if m.planner.beginGuest(o, r, off, n) {
		m.grantedLocked(o)
		m.mu.Unlock()
		return o, nil
	}
	o.granted = make(chan struct{})
	epoch := o.epoch
	m.mu.Unlock()
	asked := time.Now()
	guard := m.guard(epoch, 0)
	<-o.granted
	unguard(guard)
	o.delay = time.Since(asked)
	o.granted = nil
	return o, nil
}

// grantedLocked counts what a guest's write has to do on the target.
func (m *Mirror) grantedLocked(o *op) { m.progress.AddRemaining(o.target.end - o.target.off) }

// takeWokenLocked returns the writes that were granted after a wait, for wake. They are counted here, not by those who wait,
// so that the planner and the progress never differ.
func (m *Mirror) takeWokenLocked() []*op {
	woken := m.planner.takeWoken()
	for _, o := range woken {
		m.grantedLocked(o)
	}
	return woken
}

// onTarget does the part of a guest's write that concerns the target, if there is one.
func (f *filter) onTarget(o *op, sourceErr error, do func(ctx context.Context) error) error {
	if sourceErr != nil || o.target.end == o.target.off {
		return nil
	}
	began := time.Now()
	guard := f.m.guard(o.epoch, o.delay)
	err := do(f.m.given(o.epoch))
	unguard(guard)
	o.delay += time.Since(began)
	return err
}

// end settles a guest's write. What the source said is what the guest gets.
func (f *filter) end(o *op, sourceErr, targetErr error) error {
	m := f.m
	mirrored := o.target.end - o.target.off
	m.mu.Lock()
	before, cleaned := m.planner.d.Len(), o.cleans
	done, dirtied := m.planner.endGuest(o, sourceErr != nil, targetErr != nil)
	woken := m.takeWokenLocked()
	poke := (dirtied || cleaned) && before == 0 || o.leaves || m.planner.starved && m.planner.d.Len() > 0
	if o.mode == Background {
		m.flow.dirtied += (m.planner.d.Len() - before) * m.planner.d.Granularity()
	} else {
		m.flow.mirrored += done
		m.delay += (o.delay - m.delay) / 16
	}
	// What a write in background mode needed no copy for was not counted as left before.
	m.progress.AddRemaining(max(done, mirrored) - mirrored)
	if done > 0 {
		m.progress.Done(done)
	} else {
		m.progress.AddRemaining(-mirrored)
	}
	if targetErr != nil {
		m.failTargetLocked(o.target.off, mirrored, targetErr)
	}
	m.mu.Unlock()
	if poke || targetErr != nil {
		m.job.Poke()
	}
	wake(woken)
	m.keeper.done(o.off, o.end-o.off)
	opPool.Put(o)
	return sourceErr
}

func wake(granted []*op) {
	for _, o := range granted {
		close(o.granted)
	}
}

func (f *filter) WriteAt(ctx context.Context, p []byte, off int64, flags block.Flags) error {
	m := f.m
	r, zeroFlags := reqData, block.Flags(0)
	if m.detect != block.DetectZeroesOff && block.IsZero(p) {
		r = reqZero
		if m.detect == block.DetectZeroesUnmap {
			zeroFlags = block.MayUnmap
		}
	}
	o, err := f.begin(ctx, r, off, int64(len(p)))
	if err != nil {
		return err
	}
	sourceErr := f.source.WriteAt(ctx, p, off, flags)
	m.latency.end(o.began)
	targetErr := f.onTarget(o, sourceErr, func(ctx context.Context) error {
		if r == reqZero {
			return f.zeroTarget(ctx, o, zeroFlags|flags&block.FUA)
		}
		return f.target.WriteAt(ctx, p[o.target.off-off:o.target.end-off], o.target.off, f.durable(o, flags))
	})
	return f.end(o, sourceErr, targetErr)
}

func (f *filter) WriteZeroes(ctx context.Context, off, n int64, flags block.Flags) error {
	o, err := f.begin(ctx, reqZero, off, n)
	if err != nil {
		return err
	}
	sourceErr := f.source.WriteZeroes(ctx, off, n, flags)
	f.m.latency.end(o.began)
	targetErr := f.onTarget(o, sourceErr, func(ctx context.Context) error { return f.zeroTarget(ctx, o, flags&^block.NoFallback) })
	return f.end(o, sourceErr, targetErr)
}

// zeroTarget writes the parts of a write of zeroes that the target does not read as zero yet.
func (f *filter) zeroTarget(ctx context.Context, o *op, flags block.Flags) error {
	m := f.m
	flags = flags&^block.FUA | f.durable(o, flags)
	for _, part := range o.parts {
		if err := f.target.WriteZeroes(ctx, part.off, part.end-part.off, flags); err != nil {
			return err
		}
	}
	if flags&block.FUA != 0 && !o.wroteAll() {
		// What is skipped was zeroed earlier, but perhaps not for good.
		m.mu.Lock()
		unflushed := m.planner.unflushed(o.off, o.end-o.off)
		m.mu.Unlock()
		if unflushed {
			m.flushTarget(ctx)
		}
	}
	return nil
}

// durable is the FUA flag for the target: only while the target is in sync does it have to be as durable as the source.
func (f *filter) durable(o *op, flags block.Flags) block.Flags {
	if !o.durable {
		return 0
	}
	return flags & block.FUA
}

// Discard discards on the source only. What the target gets depends on what the source reads as afterwards: a discard there
// could make the two differ.
func (f *filter) Discard(ctx context.Context, off, n int64) error {
	if !f.source.Node().Discards() {
		return nil
	}
	o, err := f.begin(ctx, reqTrim, off, n)
	if err != nil {
		return err
	}
	sourceErr := f.source.Discard(ctx, off, n)
	var statusErr error
	targetErr := f.onTarget(o, sourceErr, func(target context.Context) (err error) {
		statusErr, err = f.followTrim(ctx, target, o)
		return err
	})
	if statusErr != nil {
		// The discard itself went well: the guest hears nothing of it, but the range must be copied.
		_ = f.end(o, statusErr, nil)
		return nil
	}
	return f.end(o, sourceErr, targetErr)
}

// followTrim brings the target to what the source reads as after a discard. ctx is for requests to the source, target for those
// to the target.
func (f *filter) followTrim(ctx, target context.Context, o *op) (sourceErr, targetErr error) {
	for at := o.target.off; at < o.target.end; {
		extent, err := f.source.BlockStatus(ctx, at, o.target.end-at)
		if err != nil {
			return err, nil
		}
		end := at + extent.Len
		if extent.Status&block.StatusZero != 0 {
			targetErr = f.followZero(target, o, at, end)
		} else {
			sourceErr, targetErr = f.followData(ctx, target, o, at, end)
		}
		if sourceErr != nil || targetErr != nil {
			return sourceErr, targetErr
		}
		at = end
	}
	return nil, nil
}

// followZero brings zeroes to the target that the source has after a discard.
func (f *filter) followZero(ctx context.Context, o *op, at, end int64) error {
	m := f.m
	m.mu.Lock()
	o.parts = m.planner.trimZero(o, at, end)
	m.mu.Unlock()
	for _, part := range o.parts {
		if err := f.target.WriteZeroes(ctx, part.off, part.end-part.off, block.MayUnmap); err != nil {
			return err
		}
	}
	return nil
}

// followData copies what the source still has after a discard.
func (f *filter) followData(ctx, target context.Context, o *op, at, end int64) (sourceErr, targetErr error) {
	m := f.m
	b := block.GetBuffer(int(min(end-at, pieceSize)))
	defer b.Release()
	for at < end && targetErr == nil {
		p := b.B[:min(int64(len(b.B)), end-at)]
		if err := f.source.ReadAt(ctx, p, at); err != nil {
			return err, nil
		}
		targetErr = m.eachFound(p, at, func(p []byte, at int64, zero bool) error {
			if zero {
				return f.followZero(target, o, at, at+int64(len(p)))
			}
			m.mu.Lock()
			m.planner.copyData(o, at, at+int64(len(p)))
			m.mu.Unlock()
			return f.target.WriteAt(target, p, at, 0)
		})
		at += int64(len(p))
	}
	return nil, targetErr
}

// Flush makes the source durable, and the target too while it is in sync. An error of the target is the job's affair.
func (f *filter) Flush(ctx context.Context) error {
	if err := f.source.Flush(ctx); err != nil {
		return err
	}
	m := f.m
	m.mu.Lock()
	synced, epoch := m.planner.synced(), m.planner.epoch
	m.mu.Unlock()
	if synced {
		guard := m.guard(epoch, 0)
		m.flushTarget(m.given(epoch))
		unguard(guard)
	}
	return nil
}

// ChildPermissions: nobody but the mirror writes below it, neither to the source nor to the target, and nobody reads a
// target that is not complete. A commit writes to what its source stands on, and what lies between them shows something else
// until it is done.
func (f *filter) ChildPermissions(child string, need, _ block.Perm) (childNeed, childShare block.Perm) {
	switch {
	case child == childTarget:
		return block.PermWrite, block.PermWriteUnchanged
	case f.m.opts.Commit != CommitNot:
		return need &^ block.PermConsistentRead, block.PermAll
	}
	return need | block.PermConsistentRead, block.PermConsistentRead | block.PermWriteUnchanged
}

// Bitmaps shows what is dirty.
func (f *filter) Bitmaps() []block.BitmapInfo {
	m := f.m
	m.mu.Lock()
	defer m.mu.Unlock()
	d := m.planner.d
	return []block.BitmapInfo{{Granularity: m.opts.Granularity, Count: d.Len() * d.Granularity()}}
}
