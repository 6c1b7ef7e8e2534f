// SPDX-License-Identifier: Apache-2.0

package bitmap

import (
	"encoding/binary"
	"io"
	"math/bits"
)

// Clone is a copy.
func (b *Bitmap) Clone() *Bitmap { return &Bitmap{Layout: b.Layout, bits: b.bits.Clone(), set: b.set} }

// Resized is a copy for a disk of size bytes. What lies on both disks has the same bits; what only the new one has is clear.
// A chunk that the end of a disk cuts keeps its bit.
func (b *Bitmap) Resized(size int64) (*Bitmap, error) {
	to, err := New(size, b.Granularity())
	if err != nil {
		return nil, err
	}
	words := to.bits.Words()
	copy(words, b.bits.Words())
	if all := to.All().End; all&63 != 0 {
		words[len(words)-1] &= 1<<uint(all&63) - 1
	}
	to.set = int64(to.bits.Count())
	return to, nil
}

// Merge sets the bit of every chunk that shares a byte with a set chunk of other, a bitmap of a disk of the same size. The
// granularities may differ.
func (b *Bitmap) Merge(other *Bitmap) {
	if b.shift == other.shift {
		b.Union(other)
		return
	}
	end := other.All().End
	for at := other.NextSetBefore(0, end); at < end; {
		until := other.RunEnd(at, end)
		b.Set(b.Outward(other.Bytes(Chunks{at, until})))
		at = other.NextSetBefore(until, end)
	}
}

// WriteTo writes the bits, the first chunk as the lowest bit of the first byte, filled up with clear ones to whole words
// of eight bytes, of which there is at least one.
func (b *Bitmap) WriteTo(w io.Writer) (int64, error) {
	buffer := make([]byte, 0, 8<<10)
	var written int64
	flush := func() error {
		n, err := w.Write(buffer)
		written, buffer = written+int64(n), buffer[:0]
		return err
	}
	for _, word := range b.bits.Words() {
		buffer = binary.LittleEndian.AppendUint64(buffer, word)
		if len(buffer) == cap(buffer) {
			if err := flush(); err != nil {
				return written, err
			}
		}
	}
	if b.All().End == 0 {
		buffer = binary.LittleEndian.AppendUint64(buffer, 0)
	}
	return written, flush()
}

// MinGranularity is the smallest granularity, a power of two of at least least, with which the bitmap of a disk of size bytes
// takes no more than memory bytes.
func MinGranularity(size, least, memory int64) int64 {
	shift := bits.TrailingZeros64(uint64(least))
	for size>>shift/8 >= memory {
		shift++
	}
	return 1 << shift
}
