// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"context"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/rangelock"
)

// filter is the node on the guest's path, above the device. It keeps guests' writes and the job's apart.
type filter struct {
	device *block.Edge
	lock   rangelock.Lock
}

var (
	_ block.Driver         = (*filter)(nil)
	_ block.ZeroWriter     = (*filter)(nil)
	_ block.ZeroUnmapper   = (*filter)(nil)
	_ block.Discarder      = (*filter)(nil)
	_ block.StatusReporter = (*filter)(nil)
	_ block.ChildPermitter = (*filter)(nil)
)

func (f *filter) Size() int64 { return f.device.Size() }

func (f *filter) ReadAt(ctx context.Context, p []byte, off int64) error {
	return f.device.ReadAt(ctx, p, off)
}

func (f *filter) WriteAt(ctx context.Context, p []byte, off int64, flags block.Flags) error {
	h := f.lock.Lock(off, int64(len(p)))
	defer f.lock.Unlock(h)
	return f.device.WriteAt(ctx, p, off, flags)
}

func (f *filter) WriteZeroes(ctx context.Context, off, n int64, flags block.Flags) error {
	h := f.lock.Lock(off, n)
	defer f.lock.Unlock(h)
	return f.device.WriteZeroes(ctx, off, n, flags)
}

func (f *filter) Discard(ctx context.Context, off, n int64) error {
	h := f.lock.Lock(off, n)
	defer f.lock.Unlock(h)
	return f.device.Discard(ctx, off, n)
}

func (f *filter) BlockStatus(ctx context.Context, off, n int64) (block.Extent, error) {
	return f.device.BlockStatus(ctx, off, n)
}

func (f *filter) CanZeroUnmap() bool { return f.device.Node().CanZeroUnmap() }

func (f *filter) Flush(ctx context.Context) error { return f.device.Flush(ctx) }

func (f *filter) Close() error { return nil }

// ChildPermissions: nobody but the filter writes to the device, and it does so without changing what is read.
func (f *filter) ChildPermissions(_ string, need, _ block.Perm) (childNeed, childShare block.Perm) {
	return need | block.PermConsistentRead | block.PermWriteUnchanged, block.PermConsistentRead | block.PermWriteUnchanged
}

// populate brings n bytes at off to the device that a layer above base has, unless the device has them by now. It returns how
// many bytes it dealt with, at least one, and how many of them it had to copy.
func (s *Stream) populate(ctx context.Context, off, n int64) (done, copied int64, err error) {
	f := s.filter
	h := f.lock.Lock(off, n)
	defer f.lock.Unlock(h)
	n, missing, err := s.missing(ctx, off, n)
	if err != nil || !missing {
		return n, 0, readFailed(err, off, n)
	}
	extent, err := f.device.BlockStatus(ctx, off, n)
	if err != nil {
		return 0, 0, readFailed(err, off, n)
	}
	n = extent.Len
	b := block.GetBuffer(int(n))
	defer b.Release()
	zero := extent.Status&block.StatusZero != 0
	if !zero {
		if err := f.device.ReadAt(ctx, b.B, off); err != nil {
			return 0, 0, readFailed(err, off, n)
		}
		zero = block.IsZero(b.B)
	}
	switch {
	case zero && s.base() == nil:
		return n, 0, nil // it reads as zero without any layer below, too
	case zero:
		err = f.device.WriteZeroes(ctx, off, n, block.MayUnmap)
	default:
		err = f.device.WriteAt(ctx, b.B, off, 0)
	}
	if err != nil {
		return 0, 0, &failure{read: false, off: off, len: n, err: err}
	}
	return n, n, nil
}

// missing says whether the device has to get the extent at off, and how long the extent is: the device has nothing there, and
// a layer below it but above base has.
func (s *Stream) missing(ctx context.Context, off, n int64) (length int64, missing bool, err error) {
	below := s.opts.Device.Backing()
	n, own, err := s.opts.Device.AllocatedAbove(ctx, below, off, n)
	if err != nil || own || below == nil {
		return n, false, err
	}
	return below.AllocatedAbove(ctx, s.base(), off, n)
}

// failure is a failed request, and where it was.
type failure struct {
	read     bool
	off, len int64
	err      error
}

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

func readFailed(err error, off, n int64) error {
	if err == nil {
		return nil
	}
	return &failure{read: true, off: off, len: n, err: err}
}
