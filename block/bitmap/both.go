// SPDX-License-Identifier: Apache-2.0

package bitmap

import "math/bits"

// CountBoth is the number of chunks in c that are set in a, in b, and in both, which have the same layout. It passes over the words
// once.
func CountBoth(a, b *Bitmap, c Chunks) (inA, inB, both int64) {
	if c.Empty() || a.set == 0 || b.set == 0 {
		return a.Count(c), b.Count(c), 0
	}
	first, last := c.First>>6, (c.End-1)>>6
	as, bs := a.bits.Words()[first:last+1], b.bits.Words()[first:last+1]
	var na, nb, nab int
	for i, x := range as {
		mask := ^uint64(0)
		if i == 0 {
			mask <<= uint(c.First & 63)
		}
		if i == len(as)-1 {
			mask &= ^uint64(0) >> uint(63-(c.End-1)&63)
		}
		x, y := x&mask, bs[i]&mask
		na += bits.OnesCount64(x)
		nb += bits.OnesCount64(y)
		nab += bits.OnesCount64(x & y)
	}
	return int64(na), int64(nb), int64(nab)
}
