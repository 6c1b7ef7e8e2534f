// SPDX-License-Identifier: Apache-2.0

package raw_test

import (
	"bytes"
	"context"
	"testing"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/blocktest"
	"github.com/blkmirror/blkmirror/block/driver/raw"
)

var bg = context.Background()

// over opens a raw node on a disk in memory.
func over(t *testing.T, g *block.Graph, m *blocktest.Mem, o raw.Options) *block.Node {
	t.Helper()
	below := blocktest.NewNode(t, g, "f", m, block.Options{Discard: true})
	return blocktest.NewParent(t, g, "r", block.Options{Discard: true}, []block.Child{{Name: "file", Node: below}},
		func(edges []*block.Edge) (block.Driver, error) { return raw.Open(edges[0], o) })
}

func TestRawPassesTheSuite(t *testing.T) {
	const offset = 1537
	for name, window := range map[string]func(size int64) (below int64, o raw.Options){
		"whole":  func(size int64) (int64, raw.Options) { return size, raw.Options{} },
		"offset": func(size int64) (int64, raw.Options) { return size + 2048, raw.Options{Offset: offset} },
		"window": func(size int64) (int64, raw.Options) { return size + 8192, raw.Options{Offset: 4096, Size: &size} },
	} {
		for _, limits := range []block.Limits{{}, {RequestAlign: 4096, MemoryAlign: 512}} {
			t.Run(name, func(t *testing.T) {
				blocktest.TestDriver(t, blocktest.Suite{Open: func(t *testing.T, size int64) block.Driver {
					below, o := window(size)
					if name == "window" {
						return fixed{over(t, block.NewGraph(), blocktest.NewMem(blocktest.MemOptions{Size: below, Limits: limits}), o).Driver().(*raw.Raw)}
					}
					return over(t, block.NewGraph(), blocktest.NewMem(blocktest.MemOptions{Size: below, Limits: limits}), o).Driver()
				}})
			})
		}
	}
}

// fixed hides Resize.
type fixed struct{ *raw.Raw }

func (fixed) Resize() {}

func TestOpenErrors(t *testing.T) {
	size := func(n int64) *int64 { return &n }
	for _, c := range []struct {
		o    raw.Options
		text string
	}{
		{raw.Options{Offset: 5 << 20}, "Offset (5242880) cannot be greater than size of the containing file (4194304)"},
		{raw.Options{Offset: -1}, "Offset (-1) cannot be negative"},
		{raw.Options{Offset: 3 << 20, Size: size(2 << 20)}, "The sum of offset (3145728) and size (2097152) has to be smaller or " +
			"equal to the actual size of the containing file (4194304)"},
		{raw.Options{Offset: 1, Size: size(1<<63 - 1)}, "The sum of offset (1) and size (9223372036854775807) has to be smaller or " +
			"equal to the actual size of the containing file (4194304)"},
		{raw.Options{Size: size(-512)}, "Size (-512) cannot be negative"},
		{raw.Options{Size: size(1000)}, "Specified size is not multiple of 512"},
	} {
		g := block.NewGraph()
		below := blocktest.NewNode(t, g, "f", blocktest.NewMem(blocktest.MemOptions{Size: 4 << 20}), block.Options{})
		err := g.Change(bg, func(tx *block.Tx) error {
			_, err := tx.AddNode(block.NodeConfig{Name: "r", Children: []block.Child{{Name: "file", Node: below}},
				Open: func(edges []*block.Edge) (block.Driver, error) { return raw.Open(edges[0], c.o) }})
			return err
		})
		if err == nil || err.Error() != c.text || block.KindOf(err) != block.KindInvalid {
			t.Errorf("%+v: %v, want %q", c.o, err, c.text)
		}
	}
}

func TestWindowMovesEverythingByTheOffset(t *testing.T) {
	m := blocktest.NewMem(blocktest.MemOptions{Size: 1 << 20, Limits: block.Limits{Granularity: 4096}})
	n := over(t, block.NewGraph(), m, raw.Options{Offset: 65536})
	if n.Size() != 1<<20-65536 {
		t.Fatalf("size %d", n.Size())
	}
	if g := n.Limits().Granularity; g != 4096 {
		t.Errorf("granularity %d", g)
	}
	for _, err := range []error{
		n.WriteAt(bg, bytes.Repeat([]byte{7}, 4096), 8192, block.FUA),
		n.WriteZeroes(bg, 0, 512, block.MayUnmap|block.NoFallback|block.FUA),
		n.Discard(bg, 512, 1024),
		n.Flush(bg),
		n.ReadAt(bg, make([]byte, 10), 8192),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if e, err := n.BlockStatus(bg, 8192, 65536); err != nil || e.Len != 4096 || e.Status&block.StatusData == 0 {
		t.Errorf("status %v, %v", e, err)
	}
	want := []string{"write 73728+4096 fua", "write-zeroes 65536+512 fua unmap fast", "discard 66048+1024", "flush 0+0",
		"read 73728+10", "block-status 73728+65536"}
	calls := m.Calls()
	for i, c := range calls {
		if i >= len(want) || c.String() != want[i] {
			t.Fatalf("calls %v, want %v", calls, want)
		}
	}
	if len(calls) != len(want) {
		t.Errorf("calls %v, want %v", calls, want)
	}
	if n.FileName() != "mem:" {
		t.Errorf("file name %q", n.FileName())
	}
	if bytes, known := n.AllocatedBytes(); !known || bytes != 4096 {
		t.Errorf("%d bytes allocated", bytes)
	}
}

func TestZeroUnmapIsThatOfTheNodeBelow(t *testing.T) {
	for _, can := range []bool{true, false} {
		n := over(t, block.NewGraph(), blocktest.NewMem(blocktest.MemOptions{Size: 4096, NoZeroUnmap: !can}), raw.Options{})
		if n.CanZeroUnmap() != can {
			t.Errorf("can %v, says %v", can, n.CanZeroUnmap())
		}
	}
}

func TestResize(t *testing.T) {
	g := block.NewGraph()
	m := blocktest.NewMem(blocktest.MemOptions{Size: 1 << 20})
	n := over(t, g, m, raw.Options{Offset: 4096})
	below, err := g.Node("f")
	if err != nil {
		t.Fatal(err)
	}
	resize := func(n *block.Node, size int64) error {
		return g.Change(bg, func(tx *block.Tx) error { return tx.Resize(bg, n, size) })
	}
	if err := resize(n, 2<<20); err != nil {
		t.Fatal(err)
	}
	if n.Size() != 2<<20 || below.Size() != 2<<20+4096 || m.Size() != 2<<20+4096 {
		t.Errorf("sizes %d, %d, %d", n.Size(), below.Size(), m.Size())
	}
	if err := resize(below, 1<<20); err != nil || n.Size() != 1<<20-4096 {
		t.Errorf("the node above is %d bytes long, %v", n.Size(), err)
	}
	if err := resize(n, 1<<63-1024); err == nil || err.Error() != "Disk size too large for the chosen offset" && block.KindOf(err) != block.KindInvalid {
		t.Errorf("huge: %v", err)
	}
	size := int64(4096)
	window := over(t, block.NewGraph(), blocktest.NewMem(blocktest.MemOptions{Size: 8192}), raw.Options{Size: &size})
	err = window.Driver().(block.Resizer).Resize(bg, 8192)
	if err == nil || err.Error() != "Cannot resize fixed-size raw disks" || block.KindOf(err) != block.KindNotSupported {
		t.Errorf("window: %v", err)
	}
}
