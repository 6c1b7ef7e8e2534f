// SPDX-License-Identifier: Apache-2.0

package block

import (
	"context"
	"errors"
	"math"

	"github.com/blkmirror/blkmirror/block/trace"
)

// zeroChunk is how much is written at once where zeroes must be written as data, and the buffer for it.
const zeroChunk = 1 << 20

var zeroBuffer = alignedBytes(zeroChunk)

// check is what every request passes first.
func (n *Node) check(op Op, off, length int64) error {
	if off < 0 || length < 0 || off > math.MaxInt64-length || off+length > n.Size() {
		return &Error{Kind: KindInvalid, Op: op, Node: n.name, Off: off, Len: length, Err: errRange(n.Size())}
	}
	if n.now().options.ReadOnly && (op == OpWrite || op == OpZero || op == OpTrim) {
		return &Error{Kind: KindReadOnly, Op: op, Node: n.name, Off: off, Len: length, Err: errReadOnly}
	}
	return nil
}

var errReadOnly = errors.New("Block node is read-only")

// wrap gives a driver's error its place, unless a node below has done so.
func (n *Node) wrap(op Op, off, length int64, err error) error {
	if err == nil {
		return nil
	}
	var e *Error // on the heap, so only when something failed
	if errors.As(err, &e) && e.Node != "" {
		return err
	}
	return &Error{Kind: KindOf(err), Op: op, Node: n.name, Off: off, Len: length, Err: err}
}

// ReadAt fills p from offset off.
func (n *Node) ReadAt(ctx context.Context, p []byte, off int64) error {
	length := int64(len(p))
	if err := n.check(OpRead, off, length); err != nil || length == 0 {
		return err
	}
	n.stats.Reads.Add(1)
	n.stats.ReadBytes.Add(length)
	began := since()
	err := n.read(ctx, p, off)
	n.took(&n.stats.ReadTime, trace.Read, off, length, began, err)
	if err != nil {
		n.stats.FailedReads.Add(1)
	}
	return n.wrap(OpRead, off, length, err)
}

// WriteAt writes all of p at offset off; of the flags only FUA has a meaning. p must be stable until the call returns.
func (n *Node) WriteAt(ctx context.Context, p []byte, off int64, flags Flags) error {
	length := int64(len(p))
	if err := n.check(OpWrite, off, length); err != nil {
		return err
	}
	if length == 0 {
		return n.flushIf(ctx, flags)
	}
	if detect := n.now().options.DetectZeroes; detect != DetectZeroesOff && IsZero(p) {
		flags &= FUA
		if detect == DetectZeroesUnmap {
			flags |= MayUnmap
		}
		return n.WriteZeroes(ctx, off, length, flags)
	}
	n.stats.Writes.Add(1)
	n.stats.WriteBytes.Add(length)
	n.passThreshold(off + length)
	n.event("pwritev")
	began := since()
	err := n.write(ctx, p, off, n.driverFlags(flags&FUA))
	n.took(&n.stats.WriteTime, trace.Write, off, length, began, err)
	n.event("pwritev_done")
	n.wrote(off, length, err)
	return n.wrap(OpWrite, off, length, err)
}

// WriteZeroes makes n bytes at offset off read as zeroes.
func (n *Node) WriteZeroes(ctx context.Context, off, length int64, flags Flags) error {
	if err := n.check(OpZero, off, length); err != nil {
		return err
	}
	if length == 0 {
		return n.flushIf(ctx, flags)
	}
	if !n.now().options.Discard {
		flags &^= MayUnmap
	}
	n.stats.Zeroes.Add(1)
	n.stats.ZeroBytes.Add(length)
	n.passThreshold(off + length)
	n.event("pwritev_zero")
	began := since()
	err := n.zero(ctx, off, length, n.driverFlags(flags))
	n.took(&n.stats.ZeroTime, trace.Zero, off, length, began, err)
	n.event("pwritev_done")
	n.wrote(off, length, err)
	return n.wrap(OpZero, off, length, err)
}

// Discard tells that n bytes at offset off are not needed any more. It succeeds without effect where discards are not
// passed on. Only whole aligned units are discarded.
func (n *Node) Discard(ctx context.Context, off, length int64) error {
	if err := n.check(OpTrim, off, length); err != nil || length == 0 {
		return err
	}
	n.stats.Trims.Add(1)
	n.stats.TrimBytes.Add(length)
	if !n.Discards() {
		return nil
	}
	if align := n.now().limits.RequestAlign; align > 1 {
		end := off + length
		if end != n.Size() {
			end = end &^ (align - 1)
		}
		off = (off + align - 1) &^ (align - 1)
		length = end - off
		if length <= 0 {
			return nil
		}
		h := n.rmw.Lock(off, length)
		defer n.rmw.Unlock(h)
	}
	n.passThreshold(off + length)
	began := since()
	err := n.now().trimmer.Discard(ctx, off, length)
	n.took(&n.stats.TrimTime, trace.Discard, off, length, began, err)
	if err != nil && KindOf(err) == KindNotSupported {
		return nil
	}
	n.markDirty(off, length)
	if err != nil {
		n.stats.FailedTrims.Add(1)
	}
	return n.wrap(OpTrim, off, length, err)
}

// Flush makes every write that returned durable.
func (n *Node) Flush(ctx context.Context) error {
	n.stats.Flushes.Add(1)
	if n.now().options.NoFlush {
		return nil
	}
	began := since()
	err := n.now().driver.Flush(ctx)
	n.took(&n.stats.FlushTime, trace.Flush, 0, 0, began, err)
	if err != nil {
		n.stats.FailedFlushes.Add(1)
	}
	return n.wrap(OpFlush, 0, 0, err)
}

// BlockStatus tells what holds for the extent at offset off: at least one byte of it and at most length.
func (n *Node) BlockStatus(ctx context.Context, off, length int64) (Extent, error) {
	if err := n.check(OpStatus, off, length); err != nil {
		return Extent{}, err
	}
	if length == 0 || n.now().reporter == nil {
		return Extent{Len: length, Status: StatusData | StatusAllocated}, nil
	}
	extent, err := n.now().reporter.BlockStatus(ctx, off, length)
	return extent, n.wrap(OpStatus, off, length, err)
}

// Space says how far the image takes space on the host from off on, or takes none; a node that cannot tell takes space
// everywhere.
func (n *Node) Space(ctx context.Context, off, length int64) (int64, bool, error) {
	if err := n.check(OpStatus, off, length); err != nil {
		return 0, false, err
	}
	s, ok := n.now().driver.(SpaceReporter)
	if !ok {
		return length, true, nil
	}
	size, taken, err := s.Space(ctx, off, length)
	return size, taken, n.wrap(OpStatus, off, length, err)
}

// ForgiveLoss has the node and those below it forget that writes were lost; see [LossForgiver].
func (n *Node) ForgiveLoss() {
	if f, ok := n.now().driver.(LossForgiver); ok {
		f.ForgiveLoss()
	}
	for _, e := range n.edges() {
		e.Node().ForgiveLoss()
	}
}

// resize changes the length of the disk. The node is drained.
func (n *Node) resize(ctx context.Context, size int64) error {
	resizer := n.now().resizer
	if resizer == nil {
		return graphError(KindNotSupported, "Node '%s' (driver %s) cannot be resized", n.name, n.driverName)
	}
	if err := n.bitmapsFit(size); err != nil {
		return err
	}
	if err := resizer.Resize(ctx, size); err != nil {
		return n.wrap(OpResize, 0, size, err)
	}
	n.measure()
	return nil
}

// measure takes note of how long the disk is now. The node is drained.
func (n *Node) measure() {
	size := n.now().driver.Size()
	n.resizeBitmaps(size)
	n.size.Store(size)
}

func (n *Node) event(name string) {
	if l := n.now().listener; l != nil {
		l.Event(name)
	}
}

// driverFlags leaves out what the node does not want its driver to do.
func (n *Node) driverFlags(flags Flags) Flags {
	if n.now().options.NoFlush {
		flags &^= FUA
	}
	return flags
}

func (n *Node) flushIf(ctx context.Context, flags Flags) error {
	if flags&FUA == 0 {
		return nil
	}
	return n.Flush(ctx)
}

// wrote takes note of a write of data or zeroes, when it has returned and before its sender is told. One that failed may have been
// carried out in part.
func (n *Node) wrote(off, length int64, err error) {
	n.markDirty(off, length)
	if err != nil {
		n.stats.FailedWrites.Add(1)
		return
	}
	end := off + length
	for {
		highest := n.stats.WriteHighest.Load()
		if end <= highest || n.stats.WriteHighest.CompareAndSwap(highest, end) {
			return
		}
	}
}

// zeroAligned writes zeroes over a range that the driver can take as it is.
func (n *Node) zeroAligned(ctx context.Context, off, length int64, flags Flags) error {
	o := n.now()
	if o.zeroer != nil {
		err := o.zeroer.WriteZeroes(ctx, off, length, flags)
		if err == nil || KindOf(err) != KindNotSupported {
			return err
		}
	}
	if flags&NoFallback != 0 {
		return NotSupported
	}
	for length > 0 {
		step := min(length, zeroChunk)
		if o.limits.MaxTransfer > 0 {
			step = min(step, o.limits.MaxTransfer)
		}
		last := flags & FUA
		if step < length {
			last = 0
		}
		if err := o.driver.WriteAt(ctx, zeroBuffer[:step], off, last); err != nil {
			return err
		}
		off, length = off+step, length-step
	}
	return nil
}
