// SPDX-License-Identifier: Apache-2.0

package block_test

import (
	"context"
	"testing"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/blocktest"
)

// overlay is a layer above a backing node, of whose disk it decides the first bytes.
type overlay struct {
	*blocktest.Mem
	decides int64
}

func (o overlay) BlockStatus(_ context.Context, off, n int64) (block.Extent, error) {
	if off < o.decides {
		return block.Extent{Len: min(n, o.decides-off), Status: block.StatusData | block.StatusAllocated}, nil
	}
	return block.Extent{Len: n, Status: block.StatusZero}, nil
}

func TestAllocationDepth(t *testing.T) {
	g := block.NewGraph()
	layer := func(name string, size, decides int64, backing *block.Node) *block.Node {
		var children []block.Child
		if backing != nil {
			children = []block.Child{{Name: "backing", Node: backing}}
		}
		mem := blocktest.NewMem(blocktest.MemOptions{Size: size})
		t.Cleanup(func() { _ = mem.Close() })
		return blocktest.NewParent(t, g, name, block.Options{}, children,
			func([]*block.Edge) (block.Driver, error) { return overlay{mem, decides}, nil })
	}
	base := layer("base", 8192, 6144, nil)
	middle := layer("middle", 16384, 4096, blocktest.NewFilter(t, g, "f", base, func(e *block.Edge) (block.Driver, error) { return pass{e}, nil }))
	top := layer("top", 16384, 1024, middle)
	for _, c := range []struct {
		off, length, want int64
		depth             int
	}{
		{0, 16384, 1024, 1}, {1024, 16384 - 1024, 3072, 2}, {4096, 12288, 2048, 3}, {6144, 10240, 2048, 0}, {8192, 8192, 8192, 0}, {5000, 10, 10, 3},
	} {
		n, depth, err := top.AllocationDepth(bg, c.off, c.length)
		if err != nil || n != c.want || depth != c.depth {
			t.Errorf("%d bytes at %d: %d bytes at depth %d, %v; want %d at %d", c.length, c.off, n, depth, err, c.want, c.depth)
		}
	}
	addBitmap(t, g, base, block.BitmapConfig{Name: "b"})
	if b, err := top.FindBitmapBelow("b"); err != nil || b.Name() != "b" {
		t.Errorf("a bitmap of the lowest layer: %v, %v", b, err)
	}
	if _, err := top.FindBitmapBelow("none"); err == nil || err.Error() != "Bitmap 'none' is not found" {
		t.Errorf("error is %v", err)
	}
}
