// SPDX-License-Identifier: Apache-2.0

package block_test

import (
	"testing"

	"github.com/blkmirror/blkmirror/block"
)

func TestBuffers(t *testing.T) {
	for _, n := range []int{0, 1, 4095, 4096, 4097, 64 << 10, 1 << 20, 2 << 20, 4 << 20, 32 << 20, 32<<20 + 1} {
		b := block.GetBuffer(n)
		if len(b.B) != n || !block.IsAligned(b.B, block.BufferAlign) {
			t.Errorf("%d bytes: got %d, aligned %v", n, len(b.B), block.IsAligned(b.B, block.BufferAlign))
		}
		for i := range b.B {
			b.B[i] = 1
		}
		b.Release()
	}
}

// Buffers that were cut from one piece of memory have none of it in common.
func TestBuffersDoNotOverlap(t *testing.T) {
	var all []*block.Buffer
	for i := range 100 {
		b := block.GetBuffer(128<<10 - i)
		for j := range b.B[:cap(b.B)] {
			b.B[:cap(b.B)][j] = byte(i)
		}
		all = append(all, b)
	}
	for i, b := range all {
		for _, c := range b.B {
			if c != byte(i) {
				t.Fatalf("buffer %d has bytes of buffer %d", i, c)
			}
		}
		b.Release()
	}
}

func TestIsZero(t *testing.T) {
	b := block.GetBuffer(300)
	defer b.Release()
	clear(b.B)
	for start := range 20 {
		for end := start; end <= 300; end++ {
			p := b.B[start:end]
			if !block.IsZero(p) {
				t.Fatalf("[%d:%d] is zero", start, end)
			}
		}
	}
	for at := range 300 {
		b.B[at] = 0x80
		for _, r := range [][2]int{{0, 300}, {3, 299}, {7, 256}, {at, at + 1}} {
			inside := r[0] <= at && at < r[1]
			if block.IsZero(b.B[r[0]:r[1]]) == inside {
				t.Fatalf("byte %d of %v", at, r)
			}
		}
		b.B[at] = 0
	}
}
