// SPDX-License-Identifier: Apache-2.0

// Package bitmap keeps one bit for each chunk of a disk, and knows how byte ranges round to chunks.
//
// A chunk is granularity bytes; the last one may be cut short by the end of the disk. There are two roundings, and
// choosing the wrong one loses data, so they have names:
//
//	disk     |  chunk 0  |  chunk 1  |  chunk 2  |ch 3|
//	request        [====================]
//	Outward  |  0  1  2  |     every chunk that the range touches
//	Inward         |  1  |     every chunk that is whole in the range; may be none
//
// Outward is for setting dirty and for clearing or testing zero; Inward is for clearing dirty and for setting zero. A chunk
// is whole in a range when all its bytes below the end of the disk are. All arithmetic with granularities is in this
// package. It does no locking.
package bitmap

import (
	"fmt"
	"math"
	"math/bits"

	"github.com/bits-and-blooms/bitset"
)

// Chunks is a range of chunk numbers, from First up to but not including End.
type Chunks struct{ First, End int64 }

// Empty says whether the range has no chunk.
func (c Chunks) Empty() bool { return c.First >= c.End }

// Len is the number of chunks.
func (c Chunks) Len() int64 { return max(c.End-c.First, 0) }

// Layout cuts a disk into chunks.
type Layout struct {
	size  int64
	shift uint
}

// NewLayout cuts size bytes into chunks of granularity bytes, a power of two.
func NewLayout(size, granularity int64) (Layout, error) {
	if granularity <= 0 || granularity&(granularity-1) != 0 {
		return Layout{}, fmt.Errorf("granularity %d is not a power of 2", granularity)
	}
	if size < 0 || size > math.MaxInt64-granularity {
		return Layout{}, fmt.Errorf("size %d is not from 0 to %d", size, math.MaxInt64-granularity)
	}
	return Layout{size, uint(bits.TrailingZeros64(uint64(granularity)))}, nil
}

// Size is the length of the disk in bytes, Granularity that of a chunk.
func (l Layout) Size() int64 { return l.size }

// Granularity is the length of a chunk in bytes.
func (l Layout) Granularity() int64 { return 1 << l.shift }

// All is the range of all chunks.
func (l Layout) All() Chunks { return Chunks{0, l.ceil(l.size)} }

func (l Layout) ceil(off int64) int64 { return (off + 1<<l.shift - 1) >> l.shift }

// Outward is every chunk that n bytes at off touch. The range lies on the disk.
func (l Layout) Outward(off, n int64) Chunks {
	if n <= 0 {
		return Chunks{off >> l.shift, off >> l.shift}
	}
	return Chunks{off >> l.shift, l.ceil(off + n)}
}

// Inward is every chunk that is whole in n bytes at off.
func (l Layout) Inward(off, n int64) Chunks {
	end := (off + n) >> l.shift
	if off+n >= l.size {
		end = l.ceil(l.size)
	}
	first := l.ceil(off)
	return Chunks{first, max(first, end)}
}

// Bytes is the byte range of chunks, cut off at the end of the disk.
func (l Layout) Bytes(c Chunks) (off, n int64) {
	off = min(c.First<<l.shift, l.size)
	return off, min(max(c.End, c.First)<<l.shift, l.size) - off
}

// Bitmap is one bit for each chunk of a layout. The number of set bits is kept, not counted.
type Bitmap struct {
	Layout
	bits *bitset.BitSet
	set  int64
}

// New makes a bitmap with no bit set.
func New(size, granularity int64) (*Bitmap, error) {
	l, err := NewLayout(size, granularity)
	if err != nil {
		return nil, err
	}
	return &Bitmap{Layout: l, bits: bitset.New(uint(l.All().End))}, nil
}

// Test says whether the bit of a chunk is set.
func (b *Bitmap) Test(chunk int64) bool { return b.bits.Test(uint(chunk)) }

// Set sets the bits of c and returns how many were clear before.
func (b *Bitmap) Set(c Chunks) int64 {
	if c.Empty() {
		return 0
	}
	added := c.Len() - b.Count(c)
	if added > 0 {
		b.bits.SetRange(uint(c.First), uint(c.End))
		b.set += added
	}
	return added
}

// Clear clears the bits of c and returns how many were set before.
func (b *Bitmap) Clear(c Chunks) int64 {
	if c.Empty() {
		return 0
	}
	removed := b.Count(c)
	if removed > 0 {
		words := b.bits.Words()
		r := rangeOf(c)
		words[r.first] &^= r.head
		if r.first < r.last {
			clear(words[r.first+1 : r.last])
			words[r.last] &^= r.tail
		}
		b.set -= removed
	}
	return removed
}

// wordRange is the words that hold the bits of some chunks. Of the first and the last one these are in head and tail.
type wordRange struct {
	first, last int64
	head, tail  uint64
}

// rangeOf is where the bits of c are, of which there is one at least.
func rangeOf(c Chunks) wordRange {
	r := wordRange{c.First >> 6, (c.End - 1) >> 6, ^uint64(0) << uint(c.First&63), ^uint64(0) >> uint(63-(c.End-1)&63)}
	if r.first == r.last {
		r.head &= r.tail
		r.tail = r.head
	}
	return r
}

// Count is the number of set bits in c.
func (b *Bitmap) Count(c Chunks) int64 {
	switch all := b.All(); {
	case c.Empty() || b.set == 0:
		return 0
	case b.set == all.End:
		return c.Len()
	case c == all:
		return b.set
	}
	words := b.bits.Words()
	r := rangeOf(c)
	n := bits.OnesCount64(words[r.first] & r.head)
	if r.first < r.last {
		for _, w := range words[r.first+1 : r.last] {
			n += bits.OnesCount64(w)
		}
		n += bits.OnesCount64(words[r.last] & r.tail)
	}
	return int64(n)
}

// AnySet says whether a bit of c is set.
func (b *Bitmap) AnySet(c Chunks) bool { return b.set > 0 && b.next(c, 0) < c.End }

// AllSet says whether all bits of c are set; true when c is empty.
func (b *Bitmap) AllSet(c Chunks) bool {
	return b.set == b.All().End || b.next(c, ^uint64(0)) >= c.End
}

// NextSet finds the first set bit at or after chunk.
func (b *Bitmap) NextSet(chunk int64) (int64, bool) {
	if b.set == 0 {
		return 0, false
	}
	next, ok := b.bits.NextSet(uint(chunk))
	return int64(next), ok
}

// NextClear finds the first clear bit at or after chunk; the number of chunks if there is none.
func (b *Bitmap) NextClear(chunk int64) int64 {
	next, ok := b.bits.NextClear(uint(chunk))
	if !ok {
		return b.All().End
	}
	return int64(next)
}

// Len is the number of set bits.
func (b *Bitmap) Len() int64 { return b.set }

// SetBytes is the number of bytes in set chunks, cut off at the end of the disk.
func (b *Bitmap) SetBytes() int64 {
	total := b.set << b.shift
	if last := b.All().End - 1; last >= 0 && b.Test(last) {
		total -= (last+1)<<b.shift - b.size
	}
	return total
}

// Union sets every bit that is set in other, which has the same layout.
func (b *Bitmap) Union(other *Bitmap) {
	b.bits.InPlaceUnion(other.bits)
	b.set = int64(b.bits.Count())
}

// NextSetBefore finds the first set bit from chunk up to but not including end; end if there is none.
func (b *Bitmap) NextSetBefore(chunk, end int64) int64 {
	return b.next(Chunks{chunk, end}, 0)
}

// RunEnd is the end of the run of equal bits that begins at chunk, at most end.
func (b *Bitmap) RunEnd(chunk, end int64) int64 {
	invert := uint64(0)
	if b.Test(chunk) {
		invert = ^uint64(0)
	}
	return b.next(Chunks{chunk, end}, invert)
}

// next finds the first bit in c that is set after each word was changed by the exclusive or with invert; the end of c if there is
// none.
func (b *Bitmap) next(c Chunks, invert uint64) int64 {
	if c.Empty() {
		return c.End
	}
	words := b.bits.Words()
	r := rangeOf(c)
	if hits := (words[r.first] ^ invert) & r.head; hits != 0 {
		return r.first<<6 + int64(bits.TrailingZeros64(hits))
	}
	at := r.first + 1
	for ; at+8 <= r.last; at += 8 {
		w := words[at : at+8 : at+8]
		if (w[0]^invert)|(w[1]^invert)|(w[2]^invert)|(w[3]^invert)|(w[4]^invert)|(w[5]^invert)|(w[6]^invert)|(w[7]^invert) != 0 {
			break
		}
	}
	for ; at < r.last; at++ {
		if hits := words[at] ^ invert; hits != 0 {
			return at<<6 + int64(bits.TrailingZeros64(hits))
		}
	}
	if hits := (words[r.last] ^ invert) & r.tail; hits != 0 {
		return r.last<<6 + int64(bits.TrailingZeros64(hits))
	}
	return c.End
}
