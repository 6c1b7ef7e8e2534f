// SPDX-License-Identifier: Apache-2.0

package blocktest

import (
	"context"
	"testing"

	"github.com/blkmirror/blkmirror/block"
)

// NewNode adds a node of the operator's with a driver that has no children, and closes the driver after the test.
func NewNode(t testing.TB, g *block.Graph, name string, d block.Driver, o block.Options) *block.Node {
	t.Helper()
	t.Cleanup(func() { _ = d.Close() })
	return NewParent(t, g, name, o, nil, func([]*block.Edge) (block.Driver, error) { return d, nil })
}

// NewParent adds a node of the operator's that stands on others.
func NewParent(t testing.TB, g *block.Graph, name string, o block.Options, children []block.Child,
	open func([]*block.Edge) (block.Driver, error)) *block.Node {
	t.Helper()
	return Add(t, g, block.NodeConfig{Name: name, DriverName: "test", Options: o, Monitor: true, Children: children,
		Open: open})
}

// NewFilter adds a filter above a node, on its child "file".
func NewFilter(t testing.TB, g *block.Graph, name string, below *block.Node,
	open func(*block.Edge) (block.Driver, error)) *block.Node {
	t.Helper()
	return Add(t, g, block.NodeConfig{Name: name, DriverName: "test", Monitor: true, Filter: true,
		Options:  block.Options{Discard: true},
		Children: []block.Child{{Name: "file", Node: below}},
		Open:     func(edges []*block.Edge) (block.Driver, error) { return open(edges[0]) }})
}

// Add adds a node.
func Add(t testing.TB, g *block.Graph, c block.NodeConfig) *block.Node {
	t.Helper()
	var n *block.Node
	Change(t, g, func(tx *block.Tx) (err error) {
		n, err = tx.AddNode(c)
		return err
	})
	return n
}

// Attach makes a backend.
func Attach(t testing.TB, g *block.Graph, n *block.Node, name string, need, share block.Perm) *block.Backend {
	t.Helper()
	var b *block.Backend
	Change(t, g, func(tx *block.Tx) (err error) {
		b, err = tx.Attach(n, name, need, share)
		return err
	})
	return b
}

// Detach takes a backend away.
func Detach(t testing.TB, g *block.Graph, b *block.Backend) {
	t.Helper()
	Change(t, g, func(tx *block.Tx) error {
		tx.Detach(b)
		return nil
	})
}

// Change changes the graph, which must work.
func Change(t testing.TB, g *block.Graph, f func(tx *block.Tx) error) {
	t.Helper()
	if err := g.Change(context.Background(), f); err != nil {
		t.Fatalf("changing the graph: %v", err)
	}
}

// Plain hides all that a driver can do beyond reading, writing and flushing.
func Plain(d block.Driver) block.Driver { return plain{d} }

type plain struct{ block.Driver }
