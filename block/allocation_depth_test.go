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
	for _, c := range []struct {
		base      *block.Node
		off, want int64
		above     bool
	}{
		{base, 0, 1024, true}, {base, 1024, 3072, true}, {base, 4096, 4096, false}, {middle, 0, 1024, true}, {middle, 1024, 15360, false},
		{nil, 4096, 2048, true}, {nil, 8192, 8192, false}, {top, 0, 16384, false},
	} {
		n, above, err := top.AllocatedAbove(bg, c.base, c.off, 16384-c.off)
		if err != nil || above != c.above || n < c.want && !above || n > c.want && above {
			t.Errorf("at %d: %d bytes above: %v, %v; want %d: %v", c.off, n, above, err, c.want, c.above)
		}
	}
	// What is above a base but beyond the end of a layer in between is not the base's.
	long := layer("long", 16384, 16384, nil)
	short := layer("short", 4096, 0, long)
	upper := layer("upper", 16384, 0, short)
	if _, above, err := upper.AllocatedAbove(bg, long, 8192, 8192); err != nil || !above {
		t.Errorf("beyond the end of a layer in between: %v, %v", above, err)
	}
	addBitmap(t, g, base, block.BitmapConfig{Name: "b"})
	if b, err := top.FindBitmapBelow("b"); err != nil || b.Name() != "b" {
		t.Errorf("a bitmap of the lowest layer: %v, %v", b, err)
	}
	if _, err := top.FindBitmapBelow("none"); err == nil || err.Error() != "Bitmap 'none' is not found" {
		t.Errorf("error is %v", err)
	}
}
