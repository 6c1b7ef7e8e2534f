// SPDX-License-Identifier: Apache-2.0

// Package raw is the driver for images without a format: the disk is what the node below holds, or a window of it.
//
// Everything passes through unchanged but the offset: block status, zeroes with their flags, discards. The driver keeps
// nothing of its own; without a size in the options the window ends where the node below does, whatever its length is.
package raw

import (
	"context"
	"fmt"
	"math"

	"github.com/blkmirror/blkmirror/block"
)

// Options choose the window.
type Options struct {
	Offset int64  // bytes of the node below before the disk
	Size   *int64 // bytes, a multiple of 512; nil for everything behind Offset
}

// Raw is the driver of a raw node.
type Raw struct {
	file   *block.Edge
	offset int64
	size   int64 // of the window, fixed; -1 to follow the node below
}

// Open makes a raw disk of the node that file leads to.
func Open(file *block.Edge, o Options) (*Raw, error) {
	r := &Raw{file: file, offset: o.Offset, size: -1}
	below := file.Size()
	switch {
	case o.Offset < 0:
		return nil, invalid("Offset (%d) cannot be negative", o.Offset)
	case o.Offset > below:
		return nil, invalid("Offset (%d) cannot be greater than size of the containing file (%d)", o.Offset, below)
	case o.Size == nil:
		return r, nil
	case *o.Size < 0:
		return nil, invalid("Size (%d) cannot be negative", *o.Size)
	case *o.Size > below-o.Offset:
		return nil, invalid("The sum of offset (%d) and size (%d) has to be smaller or equal to the actual size of the "+
			"containing file (%d)", o.Offset, *o.Size, below)
	case *o.Size%512 != 0:
		return nil, invalid("Specified size is not multiple of 512")
	}
	r.size = *o.Size
	return r, nil
}

func invalid(format string, args ...any) error {
	return &block.Error{Kind: block.KindInvalid, Op: block.OpOpen, Err: fmt.Errorf(format, args...)}
}

// Size is the length of the window. A rest of less than a sector behind an odd offset is not part of it.
func (r *Raw) Size() int64 {
	if r.size >= 0 {
		return r.size
	}
	return max(r.file.Size()-r.offset, 0) &^ 511
}

// ReadAt reads from the window.
func (r *Raw) ReadAt(ctx context.Context, p []byte, off int64) error {
	r.file.Event("read_aio")
	return r.file.ReadAt(ctx, p, r.offset+off)
}

// WriteAt writes into the window.
func (r *Raw) WriteAt(ctx context.Context, p []byte, off int64, flags block.Flags) error {
	r.file.Event("write_aio")
	return r.file.WriteAt(ctx, p, r.offset+off, flags)
}

// WriteZeroes writes zeroes into the window.
func (r *Raw) WriteZeroes(ctx context.Context, off, n int64, flags block.Flags) error {
	return r.file.WriteZeroes(ctx, r.offset+off, n, flags)
}

// CanZeroUnmap says whether the node below can.
func (r *Raw) CanZeroUnmap() bool { return r.file.Node().CanZeroUnmap() }

// Discard frees a range of the window.
func (r *Raw) Discard(ctx context.Context, off, n int64) error {
	return r.file.Discard(ctx, r.offset+off, n)
}

// Flush flushes the node below.
func (r *Raw) Flush(ctx context.Context) error { return r.file.Flush(ctx) }

// BlockStatus asks the node below.
func (r *Raw) BlockStatus(ctx context.Context, off, n int64) (block.Extent, error) {
	return r.file.BlockStatus(ctx, r.offset+off, n)
}

// Space asks the node below.
func (r *Raw) Space(ctx context.Context, off, n int64) (length int64, taken bool, err error) {
	return r.file.Space(ctx, r.offset+off, n)
}

// Mapped is where the node below has an offset of the window.
func (r *Raw) Mapped(off int64) (child *block.Edge, at int64) { return r.file, r.offset + off }

// Resize changes the length of the node below. A window with a size of its own keeps it.
func (r *Raw) Resize(ctx context.Context, size int64) error {
	switch {
	case r.size >= 0:
		return &block.Error{Kind: block.KindNotSupported, Op: block.OpGraph,
			Err: fmt.Errorf("Cannot resize fixed-size raw disks")}
	case size > math.MaxInt64-r.offset:
		return &block.Error{Kind: block.KindInvalid, Op: block.OpGraph,
			Err: fmt.Errorf("Disk size too large for the chosen offset")}
	}
	return r.file.Resize(ctx, r.offset+size)
}

// Limits passes on the preferred unit of change; the node below pads for itself.
func (r *Raw) Limits() block.Limits {
	granularity := r.file.Node().Limits().Granularity
	if granularity > 0 && r.offset%granularity != 0 {
		granularity = 0
	}
	return block.Limits{Granularity: granularity}
}

// Close has nothing to release: the node below has an owner.
func (r *Raw) Close() error { return nil }

var (
	_ block.Driver         = (*Raw)(nil)
	_ block.ZeroWriter     = (*Raw)(nil)
	_ block.ZeroUnmapper   = (*Raw)(nil)
	_ block.Discarder      = (*Raw)(nil)
	_ block.StatusReporter = (*Raw)(nil)
	_ block.Resizer        = (*Raw)(nil)
	_ block.SpaceReporter  = (*Raw)(nil)
	_ block.RangeMapper    = (*Raw)(nil)
	_ block.Limiter        = (*Raw)(nil)
)
