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
