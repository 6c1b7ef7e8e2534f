// SPDX-License-Identifier: Apache-2.0

package block_test

import (
	"testing"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/blocktest"
)

func TestDirtyExtent(t *testing.T) {
	g := block.NewGraph()
	n := blocktest.NewNode(t, g, "n", blocktest.NewMem(blocktest.MemOptions{Size: 1<<20 + 512}), block.Options{})
	b := addBitmap(t, g, n, block.BitmapConfig{Name: "b", Granularity: 4096})
	for _, off := range []int64{8192, 12288, 1 << 20} {
		if err := n.WriteAt(bg, []byte{1}, off, 0); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		off, length, want int64
		dirty             bool
	}{
		{0, 1 << 20, 8192, false}, {100, 50, 50, false}, {8191, 2, 1, false}, {8192, 1 << 20, 8192, true}, {9000, 100, 100, true},
		{16384, 1<<20 - 16384 + 512, 1<<20 - 16384, false}, {1 << 20, 512, 512, true}, {1 << 20, 5000, 512, true}, {1 << 30, 7, 7, false},
	} {
		if n, dirty := b.Extent(c.off, c.length); n != c.want || dirty != c.dirty {
			t.Errorf("%d bytes at %d: %d bytes are dirty: %v, want %d and %v", c.length, c.off, n, dirty, c.want, c.dirty)
		}
	}
}
