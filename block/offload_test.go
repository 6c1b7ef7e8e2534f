// SPDX-License-Identifier: Apache-2.0

package block_test

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/blocktest"
	"github.com/blkmirror/blkmirror/block/driver/raw"
)

// windows are two disks, seen through raw nodes with different offsets.
func windows(t *testing.T, o block.Options, limits block.Limits) (g *block.Graph, source, target *block.Node, from, to *blocktest.Mem) {
	t.Helper()
	g = block.NewGraph()
	from = blocktest.NewMemOf(bytes.Repeat([]byte("0123456789abcdef"), 64*kib/16), blocktest.MemOptions{})
	to = blocktest.NewMem(blocktest.MemOptions{Size: 64 * kib, CopyRange: true, Limits: limits})
	window := func(name string, m *blocktest.Mem, offset int64, o block.Options) *block.Node {
		below := blocktest.NewNode(t, g, name+"-file", m, block.Options{})
		return blocktest.NewParent(t, g, name, o, []block.Child{{Name: "file", Node: below}},
			func(edges []*block.Edge) (block.Driver, error) {
				return raw.Open(edges[0], raw.Options{Offset: offset})
			})
	}
	return g, window("s", from, 4*kib, block.Options{}), window("t", to, 8*kib, o), from, to
}

func TestCopyRange(t *testing.T) {
	g, source, target, from, to := windows(t, block.Options{}, block.Limits{})
	seen := addBitmap(t, g, target, block.BitmapConfig{Name: "b", Granularity: 4 * kib})
	n, how, err := target.CopyRange(bg, source, 1000, 5000, 10000, true)
	if err != nil || n != 10000 || how != block.OffloadCloned {
		t.Fatalf("%d, %v, %v", n, how, err)
	}
	if !bytes.Equal(to.Bytes()[8*kib+5000:][:10000], from.Bytes()[4*kib+1000:][:10000]) {
		t.Error("the target does not have what was copied")
	}
	expectDirty(t, seen, "1 2 3")
	below, err := g.Node("t-file")
	must(t, err)
	for _, n := range []*block.Node{target, below} {
		if s := n.Stats(); s.Writes.Load() != 1 || s.WriteBytes.Load() != 10000 {
			t.Errorf("node '%s' counted %d writes, %d bytes", n.Name(), s.Writes.Load(), s.WriteBytes.Load())
		}
	}
	if below, err = g.Node("s-file"); err != nil || below.Stats().ReadBytes.Load() != 10000 || source.Stats().ReadBytes.Load() != 10000 {
		t.Errorf("what was read of the source was not counted: %v", err)
	}
}

func TestCopyRangeIsRefused(t *testing.T) {
	for name, c := range map[string]struct {
		options  block.Options
		limits   block.Limits
		off, len int64
		kind     block.Kind
	}{
		"read-only":         {block.Options{ReadOnly: true}, block.Limits{}, 0, 4096, block.KindReadOnly},
		"zeroes are looked": {block.Options{DetectZeroes: block.DetectZeroesOn}, block.Limits{}, 0, 4096, block.KindNotSupported},
		"beyond the end":    {block.Options{}, block.Limits{}, 56 * kib, 1, block.KindInvalid},
		"unaligned":         {block.Options{}, block.Limits{RequestAlign: 4096}, 512, 4096, block.KindIO},
	} {
		t.Run(name, func(t *testing.T) {
			_, source, target, _, to := windows(t, c.options, c.limits)
			if _, _, err := target.CopyRange(bg, source, 0, c.off, c.len, true); block.KindOf(err) != c.kind {
				t.Errorf("%v", err)
			}
			if !block.IsZero(to.Bytes()) {
				t.Error("something was copied")
			}
		})
	}
}

func TestCopyRangeThatFailsLeavesDirtyBits(t *testing.T) {
	g, source, target, _, to := windows(t, block.Options{}, block.Limits{})
	seen := addBitmap(t, g, target, block.BitmapConfig{Name: "b", Granularity: 4 * kib})
	broken := errors.New("broken")
	to.SetHook(func(_ context.Context, c blocktest.Call) error {
		if c.Op == block.OpWrite {
			return broken
		}
		return nil
	})
	if _, _, err := target.CopyRange(bg, source, 0, 0, 4096, true); !errors.Is(err, broken) {
		t.Errorf("%v", err)
	}
	expectDirty(t, seen, "0")
}
