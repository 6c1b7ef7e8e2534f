// SPDX-License-Identifier: Apache-2.0

package block

import (
	"context"
	"fmt"
)

func errRange(size int64) error {
	return fmt.Errorf("the request goes beyond the end of the disk at %d", size)
}

// A driver with a request alignment takes only whole units. The node pads other requests: it reads the units at the
// edges, puts the caller's bytes in and writes them back. Two requests that share a unit must not undo each other, so
// every write on such a node holds a lock on the units it touches.

func (n *Node) aligned(off, length int64) bool {
	return (off|length)&(n.now().limits.RequestAlign-1) == 0
}

// outward is the range of whole units around a request.
func (n *Node) outward(off, length int64) (int64, int64) {
	mask := n.now().limits.RequestAlign - 1
	start := off &^ mask
	return start, (off+length+mask)&^mask - start
}

func (n *Node) read(ctx context.Context, p []byte, off int64) error {
	length := int64(len(p))
	if n.aligned(off, length) && IsAligned(p, n.now().limits.MemoryAlign) {
		return n.transfer(p, off, func(part []byte, at int64, _ bool) error { return n.now().driver.ReadAt(ctx, part, at) })
	}
	return n.bounce(off, length, func(part []byte, at int64) error {
		start, size := n.outward(at, int64(len(part)))
		b := GetBuffer(int(size))
		defer b.Release()
		if err := n.now().driver.ReadAt(ctx, b.B, start); err != nil {
			return err
		}
		copy(part, b.B[at-start:])
		return nil
	}, p)
}

func (n *Node) write(ctx context.Context, p []byte, off int64, flags Flags) error {
	length := int64(len(p))
	if n.now().limits.RequestAlign > 1 {
		start, size := n.outward(off, length)
		h := n.rmw.Lock(start, size)
		defer n.rmw.Unlock(h)
	}
	if n.aligned(off, length) && IsAligned(p, n.now().limits.MemoryAlign) {
		return n.transfer(p, off, func(part []byte, at int64, last bool) error {
			return n.now().driver.WriteAt(ctx, part, at, flagsIf(last, flags))
		})
	}
	end := off + length
	return n.bounce(off, length, func(part []byte, at int64) error {
		return n.writePadded(ctx, part, at, flagsIf(at+int64(len(part)) == end, flags))
	}, p)
}

func flagsIf(last bool, flags Flags) Flags {
	if last {
		return flags
	}
	return 0
}

// transfer cuts an aligned request into pieces that the driver takes.
func (n *Node) transfer(p []byte, off int64, do func(part []byte, at int64, last bool) error) error {
	most := n.now().limits.MaxTransfer
	for most > 0 && int64(len(p)) > most {
		if err := do(p[:most], off, false); err != nil {
			return err
		}
		p, off = p[most:], off+most
	}
	return do(p, off, true)
}

// bounce cuts a request that needs a buffer of the node's own into pieces of bounded size, at unit boundaries.
func (n *Node) bounce(off, length int64, do func(part []byte, at int64) error, p []byte) error {
	most := int64(zeroChunk)
	if n.now().limits.MaxTransfer > 0 {
		most = min(most, n.now().limits.MaxTransfer)
	}
	for length > 0 {
		step := min(length, most-off&(n.now().limits.RequestAlign-1))
		if err := do(p[:step], off); err != nil {
			return err
		}
		p, off, length = p[step:], off+step, length-step
	}
	return nil
}

// writePadded writes part through an aligned buffer; the caller holds the lock on its units.
func (n *Node) writePadded(ctx context.Context, part []byte, off int64, flags Flags) error {
	length := int64(len(part))
	start, size := n.outward(off, length)
	b := GetBuffer(int(size))
	defer b.Release()
	align := n.now().limits.RequestAlign
	if off > start {
		if err := n.now().driver.ReadAt(ctx, b.B[:align], start); err != nil {
			return err
		}
	}
	if off+length < start+size && (size > align || off == start) {
		if err := n.now().driver.ReadAt(ctx, b.B[size-align:], start+size-align); err != nil {
			return err
		}
	}
	copy(b.B[off-start:], part)
	return n.now().driver.WriteAt(ctx, b.B, start, flags)
}

// zero writes zeroes: whole units by the driver's own means, the edges as padded data.
func (n *Node) zero(ctx context.Context, off, length int64, flags Flags) error {
	if n.now().limits.RequestAlign > 1 {
		start, size := n.outward(off, length)
		h := n.rmw.Lock(start, size)
		defer n.rmw.Unlock(h)
	}
	if n.aligned(off, length) {
		return n.zeroAligned(ctx, off, length, flags)
	}
	align, end := n.now().limits.RequestAlign, off+length
	if head := -off & (align - 1); head > 0 {
		head = min(head, length)
		if err := n.writePadded(ctx, zeroBuffer[:head], off, flagsIf(head == length, flags&FUA)); err != nil {
			return err
		}
		off, length = off+head, length-head
	}
	if whole := length &^ (align - 1); whole > 0 {
		if err := n.zeroAligned(ctx, off, whole, flags&^flagsIf(whole < length, FUA)); err != nil {
			return err
		}
		off, length = off+whole, length-whole
	}
	if length > 0 {
		return n.writePadded(ctx, zeroBuffer[:length], off, flagsIf(off+length == end, flags&FUA))
	}
	return nil
}
