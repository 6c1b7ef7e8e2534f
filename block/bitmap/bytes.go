// SPDX-License-Identifier: Apache-2.0

package bitmap

// Image formats store bits as bytes: the first chunk is the lowest bit of the first byte, as for [Bitmap.WriteTo].

// MergeBytes sets the bits that are set in p, whose first one is that of a chunk. Bits beyond the last chunk are not looked at.
func (b *Bitmap) MergeBytes(chunk int64, p []byte) {
	end := min(b.All().End-chunk, int64(len(p))*8)
	for at := int64(0); at < end; {
		if p[at/8] == 0 {
			at = (at/8 + 1) * 8
			continue
		}
		if p[at/8]>>(at%8)&1 == 0 {
			at++
			continue
		}
		first := at
		for at < end && p[at/8]>>(at%8)&1 != 0 {
			if at%8 == 0 && p[at/8] == 0xff {
				at = min(at+8, end)
			} else {
				at++
			}
		}
		b.Set(Chunks{chunk + first, chunk + at})
	}
}

// AppendBytes appends n bytes with the bits from a chunk on. Those beyond the last chunk are clear.
func (b *Bitmap) AppendBytes(p []byte, chunk int64, n int) []byte {
	start := len(p)
	p = append(p, make([]byte, n)...)
	out := p[start:]
	end := min(b.All().End, chunk+int64(n)*8)
	for at := b.NextSetBefore(min(chunk, end), end); at < end; at = b.NextSetBefore(at, end) {
		for run := b.RunEnd(at, end); at < run; {
			if i := at - chunk; i%8 == 0 && run-at >= 8 {
				out[i/8] = 0xff
				at += 8
			} else {
				out[i/8] |= 1 << (i % 8)
				at++
			}
		}
	}
	return p
}
