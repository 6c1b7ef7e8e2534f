// SPDX-License-Identifier: Apache-2.0

package block

// Extent tells whether the bytes at offset off are dirty, and for how many of the next length bytes, at least one, that is
// so. What lies beyond the end of the bitmap is not dirty.
func (b *DirtyBitmap) Extent(off, length int64) (n int64, dirty bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	size := b.mu.bits.Size()
	if off >= size {
		return length, false
	}
	length = min(length, size-off)
	chunks := b.mu.bits.Outward(off, length)
	dirty = b.mu.bits.Test(chunks.First)
	end := b.mu.bits.RunEnd(chunks.First, chunks.End) * b.granularity
	return min(end-off, length), dirty
}

// Size is the length of the disk that the bitmap is about, in bytes.
func (b *DirtyBitmap) Size() int64 { return b.size() }

// FindBitmapBelow finds a dirty bitmap by its name, on the node or on those below whose disk the node shows: under filters, and
// down its backing nodes.
func (n *Node) FindBitmapBelow(name string) (*DirtyBitmap, error) {
	for at := n; at != nil; {
		if b, err := at.FindBitmap(name); err == nil {
			return b, nil
		}
		if at.filter && len(at.edges()) > 0 {
			at = at.edges()[0].Node()
		} else {
			at = at.child("backing")
		}
	}
	return nil, graphError(KindNotFound, "Bitmap '%s' is not found", name)
}
