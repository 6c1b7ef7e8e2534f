// SPDX-License-Identifier: Apache-2.0

package block

import (
	"context"
	"errors"
)

var errUnaligned = errors.New("the range is not aligned as the node needs it")

// Offload says how the kernel copied a range.
type Offload uint8

// The ways of the kernel.
const (
	OffloadNone   Offload = iota
	OffloadCloned         // the two images share the extents until one of them is written to
	OffloadCopied         // and may share them nevertheless, where the file system likes to
)

// RangeCopier is a driver that can have the kernel copy from the image of another driver into its own. It copies the first
// copied bytes of the n at off, and says how; what is copied is data, whatever it reads as. NotSupported says that it never
// will from that image, any other error that it did not this time: then any part of the range may have been written. It does
// not copy to where the image takes space already, which may have been allocated on purpose. share says that the two images
// may share extents.
type RangeCopier interface {
	CopyRange(ctx context.Context, from Driver, fromOff, off, n int64, share bool) (copied int64, how Offload, err error)
}

// RangeMapper is a driver that passes its requests on unchanged but for their offset. Mapped tells where an offset of its
// disk is found.
type RangeMapper interface {
	Mapped(off int64) (child *Edge, at int64)
}

// CopyRange has the kernel copy bytes from offset fromOff of another node to offset off, as a write of data does; see
// [RangeCopier]. It succeeds for the first copied bytes of the n. A node that looks for zeroes needs to see the data, so it
// does not support this.
func (n *Node) CopyRange(ctx context.Context, from *Node, fromOff, off, length int64, share bool) (copied int64, how Offload, err error) {
	if err := n.check(OpWrite, off, length); err != nil {
		return 0, 0, err
	}
	if err := from.check(OpRead, fromOff, length); err != nil {
		return 0, 0, err
	}
	o := n.now()
	if length == 0 || o.options.DetectZeroes != DetectZeroesOff {
		return 0, 0, NotSupported
	}
	if !n.aligned(off, length) {
		return 0, 0, n.wrap(OpWrite, off, length, errUnaligned)
	}
	switch d := o.driver.(type) {
	case RangeMapper:
		child, at := d.Mapped(off)
		copied, how, err = child.Node().CopyRange(ctx, from, fromOff, at, length, share)
	case RangeCopier:
		source, at := from.origin(fromOff)
		if o.limits.RequestAlign > 1 {
			h := n.rmw.Lock(off, length)
			defer n.rmw.Unlock(h)
		}
		copied, how, err = d.CopyRange(ctx, source.now().driver, at, off, length, share)
		if err == nil {
			from.countRead(copied)
		}
	default:
		return 0, 0, NotSupported
	}
	switch {
	case err == nil:
		n.stats.Writes.Add(1)
		n.stats.WriteBytes.Add(copied)
		n.passThreshold(off + copied)
		n.wrote(off, copied, nil)
	case err != NotSupported:
		n.markDirty(off, length)
	}
	if err != NotSupported { // which is an answer, not a failure
		err = n.wrap(OpWrite, off, length, err)
	}
	return copied, how, err
}

// origin is the node that an offset of the disk really lies in, with nothing but changes of the offset in between.
func (n *Node) origin(off int64) (*Node, int64) {
	for {
		d, ok := n.now().driver.(RangeMapper)
		if !ok {
			return n, off
		}
		child, at := d.Mapped(off)
		n, off = child.Node(), at
	}
}

// countRead counts a read of a node and of those that it passes its requests on to.
func (n *Node) countRead(length int64) {
	n.stats.Reads.Add(1)
	n.stats.ReadBytes.Add(length)
	if d, ok := n.now().driver.(RangeMapper); ok {
		child, _ := d.Mapped(0)
		child.Node().countRead(length)
	}
}

// CopyRange copies from another node to the node below; see [Node.CopyRange].
func (e *Edge) CopyRange(ctx context.Context, from *Node, fromOff, off, n int64, share bool) (copied int64, how Offload, err error) {
	return e.Node().CopyRange(ctx, from, fromOff, off, n, share)
}
