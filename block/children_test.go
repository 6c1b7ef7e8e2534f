// SPDX-License-Identifier: Apache-2.0

package block_test

import (
	"context"
	"errors"
	"testing"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/blocktest"
)

// layers is a graph of a base full of ones, and a chain of overlays over it, from the bottom up. Names that begin with '#'
// are those of nodes that are not the operator's.
func layers(t *testing.T, names ...string) (g *block.Graph, nodes []*block.Node) {
	t.Helper()
	g = block.NewGraph()
	base := make([]byte, 1<<20)
	for i := range base {
		base[i] = 1
	}
	nodes = append(nodes, blocktest.NewNode(t, g, "base", blocktest.NewMemOf(base, blocktest.MemOptions{}), block.Options{}))
	for _, name := range names {
		c := block.NodeConfig{Name: name, DriverName: "test", Monitor: name != "",
			Children: []block.Child{{Name: "backing", Node: nodes[len(nodes)-1]}},
			Open: func(edges []*block.Edge) (block.Driver, error) {
				return blocktest.NewOverlay(edges[0], blocktest.OverlayOptions{}), nil
			}}
		nodes = append(nodes, blocktest.Add(t, g, c))
	}
	return g, nodes
}

func firstByte(t *testing.T, n *block.Node) byte {
	t.Helper()
	p := make([]byte, 1)
	if err := n.ReadAt(context.Background(), p, 0); err != nil {
		t.Fatal(err)
	}
	return p[0]
}

func TestSetChild(t *testing.T) {
	g, n := layers(t, "", "top")
	base, middle, top := n[0], n[1], n[2]
	if top.Backing() != middle || middle.Backing() != base || base.Backing() != nil {
		t.Fatal("the chain is not what it was built as")
	}
	set := func(n *block.Node, role string, to *block.Node) error {
		return g.Change(context.Background(), func(tx *block.Tx) error { return tx.SetChild(n, role, to) })
	}
	for _, c := range []struct {
		n, to *block.Node
		role  string
		kind  block.Kind
	}{
		{middle, top, "backing", block.KindInvalid}, // a loop
		{middle, middle, "backing", block.KindInvalid},
		{base, top, "backing", block.KindNotSupported},
		{top, base, "file", block.KindNotSupported},
	} {
		if err := set(c.n, c.role, c.to); block.KindOf(err) != c.kind {
			t.Errorf("'%s' of %s to %s: %v", c.role, c.n.Name(), c.to.Name(), err)
		}
	}
	if err := set(top, "file", nil); err != nil {
		t.Errorf("no child instead of none: %v", err)
	}
	blocktest.Change(t, g, func(tx *block.Tx) error { return tx.SetChild(top, "backing", base) })
	if top.Backing() != base || firstByte(t, top) != 1 {
		t.Error("the base does not show through")
	}
	if _, err := g.Node(middle.Name()); err == nil {
		t.Error("a node that nobody uses is still there")
	}
	blocktest.Change(t, g, func(tx *block.Tx) error { return tx.SetChild(top, "backing", nil) })
	if top.Backing() != nil || len(top.Children()) != 0 || firstByte(t, top) != 0 || len(g.Users(base)) != 0 {
		t.Error("the base is still there")
	}
	blocktest.Change(t, g, func(tx *block.Tx) error { return tx.SetChild(top, "backing", base) })
	if top.Backing() != base || firstByte(t, top) != 1 || len(g.Users(base)) != 1 {
		t.Error("the base did not come back")
	}
}

// A change that fails later leaves the children as they were.
func TestSetChildIsRolledBack(t *testing.T) {
	g, n := layers(t, "", "top")
	base, middle, top := n[0], n[1], n[2]
	failed := errors.New("no")
	for _, to := range []*block.Node{base, nil} {
		err := g.Change(context.Background(), func(tx *block.Tx) error {
			if err := tx.SetChild(top, "backing", to); err != nil {
				t.Error(err)
			}
			return failed
		})
		if !errors.Is(err, failed) || top.Backing() != middle || firstByte(t, top) != 1 {
			t.Errorf("%v, backing node %v", err, top.Backing())
		}
		if found, err := g.Node(middle.Name()); err != nil || found != middle {
			t.Error(err)
		}
	}
	blocktest.Change(t, g, func(tx *block.Tx) error { return tx.SetChild(top, "backing", nil) })
	_ = g.Change(context.Background(), func(tx *block.Tx) error {
		if err := tx.SetChild(top, "backing", base); err != nil {
			t.Error(err)
		}
		return failed
	})
	if top.Backing() != nil || firstByte(t, top) != 0 || len(g.Users(base)) != 0 {
		t.Error("a base that was taken back is still there")
	}
}
