// SPDX-License-Identifier: Apache-2.0

// Package null holds the drivers 'null-co' and 'null-aio', one engine here: disks that store nothing.
//
// Writes vanish. Reads return zeroes; with read-zeroes the disk also says so, and without it block status tells that
// nothing is known, so that nobody copies it. A latency can be given to every request, to measure what is around.
package null

import (
	"context"
	"fmt"
	"time"

	"github.com/blkmirror/blkmirror/block"
)

// DefaultSize is the length of a disk for which none is given.
const DefaultSize = 1 << 30

// Options describe a disk.
type Options struct {
	Size       *int64        // bytes, rounded up to whole sectors; nil for DefaultSize
	Latency    time.Duration // of each read, write and flush
	ReadZeroes bool          // promise that the disk reads as zeroes
}

// Null is a disk that stores nothing.
type Null struct {
	size       int64
	latency    time.Duration
	readZeroes bool
}

// Open makes a disk.
func Open(o Options) (*Null, error) {
	size := int64(DefaultSize)
	if o.Size != nil {
		size = *o.Size
	}
	switch {
	case size < 0:
		return nil, invalid("Parameter 'size' expects a non-negative number of bytes, not %d", size)
	case size > 1<<63-512:
		return nil, invalid("Parameter 'size' is too large: %d", size)
	case o.Latency < 0:
		return nil, invalid("latency-ns is invalid: %d", o.Latency)
	}
	return &Null{size: (size + 511) &^ 511, latency: o.Latency, readZeroes: o.ReadZeroes}, nil
}

func invalid(format string, args ...any) error {
	return &block.Error{Kind: block.KindInvalid, Op: block.OpOpen, Err: fmt.Errorf(format, args...)}
}

func (d *Null) wait(ctx context.Context) error {
	if d.latency == 0 {
		return nil
	}
	timer := time.NewTimer(d.latency)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Size is the length of the disk.
func (d *Null) Size() int64 { return d.size }

// ReadAt returns zeroes: a buffer may hold somebody else's data, which must not get out.
func (d *Null) ReadAt(ctx context.Context, p []byte, _ int64) error {
	clear(p)
	return d.wait(ctx)
}

// WriteAt drops the data.
func (d *Null) WriteAt(ctx context.Context, _ []byte, _ int64, _ block.Flags) error {
	return d.wait(ctx)
}

// WriteZeroes does nothing.
func (d *Null) WriteZeroes(ctx context.Context, _, _ int64, _ block.Flags) error { return d.wait(ctx) }

// Flush does nothing.
func (d *Null) Flush(ctx context.Context) error { return d.wait(ctx) }

// BlockStatus knows nothing, unless zeroes were promised.
func (d *Null) BlockStatus(_ context.Context, _, n int64) (block.Extent, error) {
	if d.readZeroes {
		return block.Extent{Len: n, Status: block.StatusZero | block.StatusAllocated}, nil
	}
	return block.Extent{Len: n}, nil
}

// FileName tells how the disk would be written as a name.
func (d *Null) FileName() string { return "null-co://" }

// AllocatedBytes is nothing at all.
func (d *Null) AllocatedBytes() (int64, error) { return 0, nil }

// Close has nothing to release.
func (d *Null) Close() error { return nil }

var (
	_ block.Driver             = (*Null)(nil)
	_ block.ZeroWriter         = (*Null)(nil)
	_ block.StatusReporter     = (*Null)(nil)
	_ block.FileNamer          = (*Null)(nil)
	_ block.AllocationReporter = (*Null)(nil)
)
