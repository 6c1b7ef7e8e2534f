// SPDX-License-Identifier: Apache-2.0

package nbd

import (
	"context"
	"fmt"

	"github.com/blkmirror/blkmirror/block"
	wire "github.com/blkmirror/blkmirror/block/nbd"
)

// maxRange is the most that one request without data covers, bytes: it must fit 32 bits, and end in bearable time.
const maxRange = 1 << 30

// repeatable says whether a request does no harm when it is sent once more behind the back of its caller.
func (r *request) repeatable() bool {
	return r.command == wire.CmdRead || r.command == wire.CmdBlockStatus
}

// ReadAt reads. What is behind the end of an export that is not made of whole sectors reads as zeroes.
func (d *Disk) ReadAt(ctx context.Context, p []byte, off int64) error {
	if over := off + int64(len(p)) - d.export.size; over > 0 {
		keep := max(int64(len(p))-over, 0)
		clear(p[keep:])
		if p = p[:keep]; keep == 0 {
			return nil
		}
	}
	r := newRequest(wire.CmdRead, off, int64(len(p)))
	r.into = p
	if err := d.do(ctx, r); err != nil {
		return err
	}
	r.recycle()
	return nil
}

// WriteAt writes. Behind the end of an export that is not made of whole sectors there is room for zeroes only.
func (d *Disk) WriteAt(ctx context.Context, p []byte, off int64, flags block.Flags) error {
	if over := off + int64(len(p)) - d.export.size; over > 0 {
		keep := max(int64(len(p))-over, 0)
		if !block.IsZero(p[keep:]) {
			return &block.Error{Kind: block.KindNoSpace, Op: block.OpGraph,
				Err: fmt.Errorf("the export ends at %d, inside of a sector", d.export.size)}
		}
		if p = p[:keep]; keep == 0 {
			return nil
		}
	}
	r := newRequest(wire.CmdWrite, off, int64(len(p)))
	r.payload = p
	return d.change(ctx, r, flags)
}

// WriteZeroes writes zeroes without sending them.
func (d *Disk) WriteZeroes(ctx context.Context, off, n int64, flags block.Flags) error {
	var how wire.CommandFlags
	if flags&block.MayUnmap == 0 {
		how = wire.FlagNoHole
	}
	switch {
	case !d.can(wire.SendWriteZeroes), flags&block.NoFallback != 0 && !d.can(wire.SendFastZero):
		return block.NotSupported
	case flags&block.NoFallback != 0:
		how |= wire.FlagFastZero
	}
	return d.ranges(ctx, wire.CmdWriteZeroes, how, off, n, flags)
}

// CanZeroUnmap says whether the server may be asked for holes that read as zeroes.
func (d *Disk) CanZeroUnmap() bool { return d.can(wire.SendWriteZeroes) }

// Discard tells the server that a range is not needed.
func (d *Disk) Discard(ctx context.Context, off, n int64) error {
	if !d.can(wire.SendTrim) {
		return block.NotSupported
	}
	return d.ranges(ctx, wire.CmdTrim, 0, off, n, 0)
}

func (d *Disk) can(flag wire.TransmissionFlags) bool { return d.export.flags&flag != 0 }

// ranges sends a request without data, in as many parts as it takes.
func (d *Disk) ranges(ctx context.Context, c wire.Command, how wire.CommandFlags, off, n int64, flags block.Flags) error {
	n = min(n, d.export.size-off)
	for n > 0 {
		step := min(n, maxRange)
		r := newRequest(c, off, step)
		r.flags = how
		last := flags
		if step < n {
			last &^= block.FUA
		}
		if err := d.change(ctx, r, last); err != nil {
			return err
		}
		off, n = off+step, n-step
	}
	return nil
}

// change carries out a request that changes the disk.
func (d *Disk) change(ctx context.Context, r *request, flags block.Flags) error {
	fua := flags&block.FUA != 0
	if fua && d.can(wire.SendFUA) {
		r.flags |= wire.FlagFUA
	}
	off, n, sent := r.off, r.n, r.flags
	err := d.do(ctx, r)
	d.cache.changed(off, n) // after a failure, too: it may have been carried out
	if err != nil {
		return err
	}
	r.recycle()
	if fua && sent&wire.FlagFUA == 0 {
		return d.Flush(ctx)
	}
	return nil
}

// Flush makes durable what was written. A server without flush has nothing to make durable, or no way to.
func (d *Disk) Flush(ctx context.Context) error {
	answered := d.writes.Load()
	if d.can(wire.SendFlush) {
		r := newRequest(wire.CmdFlush, 0, 0)
		if err := d.do(ctx, r); err != nil {
			return err
		}
		r.recycle()
	}
	if err := d.leftovers.flushFailed(); err != nil {
		return err
	}
	for {
		old := d.durable.Load()
		if old >= answered || d.durable.CompareAndSwap(old, answered) {
			return nil
		}
	}
}
