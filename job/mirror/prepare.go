// SPDX-License-Identifier: Apache-2.0

package mirror

import (
	"context"
	"errors"
	"time"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/bitmap"
)

// scanSlice is how much of the source one step of the scan takes in at most, so that no guest waits long for the planner.
const scanSlice = 64 << 30

// prepare finds out what has to be copied.
func (l *loop) prepare(ctx context.Context) error {
	m := l.m
	if m.opts.Resume != nil {
		return l.resume(ctx)
	}
	if written(m.opts.Target) {
		m.mu.Lock()
		m.planner.touch(0, m.planner.d.Size())
		m.mu.Unlock()
	}
	switch sync := m.opts.Sync; {
	case m.opts.Commit != CommitNot, sync == SyncTop:
		return l.scan(ctx)
	case sync == SyncNone, sync == SyncBitmap:
		m.mu.Lock()
		m.planner.skipScan()
		m.mu.Unlock()
		return nil
	}
	zero, err := l.targetIsZero(ctx)
	if err != nil {
		return err
	}
	if !zero && m.opts.Target.CanZeroUnmap() {
		if err := l.zeroTarget(ctx); err != nil {
			return err
		}
		zero = true
	}
	if !zero {
		m.inSlices(func(int64) (int64, bool) { return 0, m.planner.markSlice() })
		return nil
	}
	m.inSlices(func(at int64) (int64, bool) {
		next, all := m.planner.zeroSlice(at)
		return next, next < all
	})
	return l.scan(ctx)
}

// inSlices has the planner do something piece by piece, each from where the one before ended, and lets guests in between.
func (m *Mirror) inSlices(do func(at int64) (next int64, more bool)) {
	for at, more := int64(0), true; more; {
		m.mu.Lock()
		at, more = do(at)
		m.mu.Unlock()
	}
}

// take makes dirty what is set in a bitmap.
func (m *Mirror) take(set *bitmap.Bitmap) {
	m.inSlices(func(at int64) (int64, bool) {
		next, all := m.planner.take(set, at)
		return next, next < all
	})
}

// written says whether somebody wrote to a node since it was opened, so that what it reads as may not be durable.
func written(n *block.Node) bool {
	s := n.Stats()
	return s.Writes.Load()+s.Zeroes.Load()+s.Trims.Load() > 0
}

// targetIsZero says whether the target reads as zero and may stay as it is where the source is zero.
func (l *loop) targetIsZero(ctx context.Context) (zero bool, err error) {
	m := l.m
	target := m.opts.Target
	if m.detect == block.DetectZeroesUnmap && target.CanZeroUnmap() {
		return false, nil // zeroes shall become holes, and those that are there already are found by zeroTarget
	}
	if m.opts.TargetIsZero {
		return true, nil
	}
	for {
		err = l.inside(ctx, func() error {
			zero, err = readsZero(m.reach(), m.filter.target)
			return err
		})
		if !errors.Is(err, errSilent) && !errors.Is(err, block.ErrDisconnected) {
			return zero, err
		}
		// Somebody wants guests to be drained, or the connection was lost. From the beginning, then.
		if err := l.lookAndWait(ctx); err != nil {
			return false, err
		}
	}
}

// zeroTarget makes the whole target read as zero by unmapping what takes space. Guests' writes leave it alone meanwhile: nothing
// is scanned yet, so every chunk counts as dirty. It is no progress, and the speed does not hold it: unmapping is cheap.
func (l *loop) zeroTarget(ctx context.Context) error {
	m := l.m
	for at := int64(0); at < m.planner.d.Size(); {
		if err := l.lookAndWait(ctx); err != nil {
			return err
		}
		var n int64
		err := l.inside(ctx, func() (err error) {
			n, err = m.zeroNext(m.reach(), at)
			return err
		})
		if err != nil {
			m.targetFailed(at, n, err)
			continue
		}
		at += n
	}
	return nil
}

// zeroNext makes a piece of the target at an offset read as zero, if it takes space, and returns its length.
func (m *Mirror) zeroNext(ctx context.Context, at int64) (int64, error) {
	rest := m.planner.d.Size() - at
	n, taken, err := m.opts.Target.Space(ctx, at, rest)
	if err != nil {
		return rest, err
	}
	if !taken {
		return n, nil
	}
	n = min(n, zeroPiece)
	m.touch(at, n)
	defer m.touch(at, n) // a flush that began meanwhile may not have covered it
	return n, m.filter.target.WriteZeroes(ctx, at, n, block.MayUnmap)
}

// touch notes that a range of the target is being written.
func (m *Mirror) touch(off, n int64) {
	m.mu.Lock()
	m.planner.touch(off, n)
	m.mu.Unlock()
}

// lookAndWait is look, and the wait for a target that is lost, or after a failure that is to be tried again.
func (l *loop) lookAndWait(ctx context.Context) error {
	for {
		if err := l.look(ctx); err != nil {
			return err
		}
		wait, back := max(time.Until(l.notYet), 0), l.m.opts.Target.Waiting()
		if wait == 0 && back == nil {
			return nil
		}
		l.sleep(ctx, wait, back)
	}
}

// scan walks the extents of the source once.
func (l *loop) scan(ctx context.Context) error {
	m := l.m
	size := m.planner.d.Size()
	most := min(scanSlice, slice*m.planner.d.Granularity())
	for at := int64(0); at < size; {
		if err := l.look(ctx); err != nil {
			return err
		}
		var found scanned
		err := l.inside(ctx, func() (err error) {
			found, err = m.classify(ctx, at, min(size-at, most))
			return err
		})
		if err != nil {
			return err
		}
		m.mu.Lock()
		done := m.planner.scan(found.len, found.dirty, found.counts)
		m.bytes.Skipped += done
		m.mu.Unlock()
		m.progress.Done(done)
		at += found.len
	}
	return nil
}

// scanned is what the scan makes of an extent.
type scanned struct {
	len    int64
	dirty  bool // it has to be copied
	counts bool // it is work done if it has not
}

// classify decides about the extent of the source at an offset, as far as it is alike.
func (m *Mirror) classify(ctx context.Context, at, n int64) (s scanned, err error) {
	if m.opts.Resume != nil {
		length, dirty := m.resumeRun(at, n)
		if !dirty {
			return scanned{len: length, counts: m.opts.Commit == CommitLower}, nil
		}
		n = length
	}
	if m.opts.Commit != CommitNot {
		s.len, s.dirty, err = m.opts.Source.AllocatedAbove(ctx, m.opts.Target, at, n)
		s.counts = s.dirty || m.opts.Commit == CommitLower
		return s, err
	}
	extent, err := m.filter.source.BlockStatus(ctx, at, n)
	if err != nil {
		return s, err
	}
	s.len = extent.Len
	allocated := extent.Status&block.StatusAllocated != 0
	switch {
	case m.opts.Sync == SyncTop:
		s.dirty, s.counts = allocated, allocated
	case extent.Status&block.StatusData != 0:
		s.dirty, s.counts = true, true
	case allocated:
		s.counts = true // the target reads as zero, too
	case m.opts.Source.Backing() != nil:
		// A layer below may have it. What none has is no part of the work.
		var depth int
		s.len, depth, err = m.opts.Source.AllocationDepth(ctx, at, extent.Len)
		s.counts = depth > 0
	}
	return s, err
}
