// SPDX-License-Identifier: Apache-2.0

package block

import (
	"slices"
	"sync"

	"github.com/blkmirror/blkmirror/block/bitmap"
)

const (
	minBitmapGranularity = 512
	maxBitmapNameLen     = 1023
	// maxBitmapMemory is how many bytes the bits of one dirty bitmap may take.
	maxBitmapMemory = 256 << 20
)

// DirtyBitmap records, by chunks of its granularity, which parts of a node were written. While it is enabled, every write,
// write of zeroes and effective discard sets the bits of all chunks that it touches, whether it succeeded or not, when
// its driver has returned and before its sender is told.
type DirtyBitmap struct {
	name        string
	granularity int64
	mu          struct {
		sync.Mutex
		bits      *bitmap.Bitmap
		recording bool
		busy      bool
		// keeper is the node in whose image the bitmap is stored when that is closed; nil if it is not.
		keeper *Node
		// inconsistent: what the image had was of no use; such a bitmap records nothing and can only be removed.
		inconsistent bool
	}
}

// Name is unique on the node.
func (b *DirtyBitmap) Name() string { return b.name }

// Granularity is the number of bytes that one bit stands for.
func (b *DirtyBitmap) Granularity() int64 { return b.granularity }

// Count is the number of dirty bytes, in whole chunks.
func (b *DirtyBitmap) Count() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.mu.bits.Len() * b.granularity
}

func (b *DirtyBitmap) size() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.mu.bits.Size()
}

// Info describes the bitmap.
func (b *DirtyBitmap) Info() BitmapInfo {
	b.mu.Lock()
	defer b.mu.Unlock()
	return BitmapInfo{Name: b.name, Granularity: b.granularity, Count: b.mu.bits.Len() * b.granularity,
		Recording: b.mu.recording, Busy: b.mu.busy, Persistent: b.mu.keeper != nil, Inconsistent: b.mu.inconsistent}
}

// Snapshot is a copy of the bits.
func (b *DirtyBitmap) Snapshot() *bitmap.Bitmap {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.mu.bits.Clone()
}

// Clear forgets what was written. A write that has not returned yet sets its bits again.
func (b *DirtyBitmap) Clear() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.mu.bits.Clear(b.mu.bits.All())
}

// SetBusy reserves the bitmap for one user, or gives it back. A bitmap that is reserved cannot be reserved again, and one that
// is inconsistent not at all.
func (b *DirtyBitmap) SetBusy(busy bool) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if busy {
		if err := b.freeLocked(); err != nil {
			return err
		}
	}
	b.mu.busy = busy
	return nil
}

// Free is the error for an operator's request to a bitmap that is reserved or of no use; nil if it is neither.
func (b *DirtyBitmap) Free() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.freeLocked()
}

func (b *DirtyBitmap) freeLocked() error {
	switch {
	case b.mu.busy:
		return b.inUse()
	case b.mu.inconsistent:
		return graphError(KindInvalid, "Bitmap '%s' is inconsistent and cannot be used: the image that has it was not closed "+
			"properly; it can only be removed", b.name)
	}
	return nil
}

func (b *DirtyBitmap) busy() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.mu.busy {
		return b.inUse()
	}
	return nil
}

func (b *DirtyBitmap) inUse() error {
	return graphError(KindBusy, "Bitmap '%s' is currently in use by another operation and cannot be used", b.name)
}

// mark takes note of a write.
func (b *DirtyBitmap) mark(off, length int64) {
	b.mu.Lock()
	if b.mu.recording {
		b.mu.bits.Set(b.mu.bits.Outward(off, length))
	}
	b.mu.Unlock()
}

// resize makes the bitmap fit a disk of another size. What the disk got is dirty: it does not read as what was there when
// the disk was as long before.
func (b *DirtyBitmap) resize(size int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	old := b.mu.bits.Size()
	if size == old || b.mu.inconsistent {
		return
	}
	bits, err := b.mu.bits.Resized(size)
	if err != nil {
		panic("block: " + err.Error()) // bitmapsFit has said that it can be done
	}
	if size > old && b.mu.recording {
		bits.Set(bits.Outward(old, size-old))
	}
	b.mu.bits = bits
}

// Bitmaps lists the dirty bitmaps of the node, the oldest first.
func (n *Node) Bitmaps() []*DirtyBitmap {
	if list := n.bitmaps.Load(); list != nil {
		return slices.Clone(*list)
	}
	return nil
}

// FindBitmap finds a dirty bitmap by its name.
func (n *Node) FindBitmap(name string) (*DirtyBitmap, error) {
	if list := n.bitmaps.Load(); list != nil {
		for _, b := range *list {
			if b.name == name {
				return b, nil
			}
		}
	}
	return nil, graphError(KindNotFound, "Dirty bitmap '%s' not found", name)
}

// markDirty takes note of a write in all bitmaps.
func (n *Node) markDirty(off, length int64) {
	list := n.bitmaps.Load()
	if list == nil {
		return
	}
	for _, b := range *list {
		b.mark(off, length)
	}
}

// bitmapsFit is the error for a disk that is too long for its bitmaps, or that cannot change because of a user of one.
func (n *Node) bitmapsFit(size int64) error {
	for _, b := range n.Bitmaps() {
		if err := b.busy(); err != nil {
			return err
		}
		if err := bitmapFits(b.name, size, b.granularity); err != nil {
			return err
		}
	}
	return nil
}

// bitmapsFitAbove asks bitmapsFit of the nodes above n, none of whose disks is longer than that of n.
func (g *Graph) bitmapsFitAbove(n *Node, size int64) error {
	g.mu.RLock()
	parents := slices.Clone(n.parents)
	g.mu.RUnlock()
	for _, e := range parents {
		if e.parent == nil {
			continue
		}
		if err := e.parent.bitmapsFit(size); err != nil {
			return err
		}
		if err := g.bitmapsFitAbove(e.parent, size); err != nil {
			return err
		}
	}
	return nil
}

func bitmapFits(name string, size, granularity int64) error {
	if least := bitmap.MinGranularity(size, granularity, maxBitmapMemory); least > granularity {
		return graphError(KindNoMemory, "Bitmap '%s' would take more than %d MiB with granularity %d on a disk of %d bytes; "+
			"granularity %d fits", name, maxBitmapMemory>>20, granularity, size, least)
	}
	return nil
}

// resizeBitmaps makes the bitmaps fit a disk of size bytes. The node is drained.
func (n *Node) resizeBitmaps(size int64) {
	for _, b := range n.Bitmaps() {
		b.resize(size)
	}
}
