// SPDX-License-Identifier: Apache-2.0

package block_test

import (
	"testing"

	"github.com/blkmirror/blkmirror/block"
)

func TestBuffers(t *testing.T) {
	for _, n := range []int{0, 1, 4095, 4096, 4097, 1 << 20, 32 << 20, 32<<20 + 1} {
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
