// SPDX-License-Identifier: Apache-2.0

package block_test

import (
	"context"
	"testing"

	"go.uber.org/goleak"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/blocktest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var bg = context.Background()

const (
	kib = 1 << 10
	mib = 1 << 20
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newMem(size int64) *blocktest.Mem { return blocktest.NewMem(blocktest.MemOptions{Size: size}) }

// disk is a node on a disk in memory, in a graph of its own.
func disk(t testing.TB, o blocktest.MemOptions, options block.Options) (*block.Graph, *block.Node, *blocktest.Mem) {
	t.Helper()
	g, m := block.NewGraph(), blocktest.NewMem(o)
	return g, blocktest.NewNode(t, g, "disk", m, options), m
}

// pass is a driver that sends everything to its first child, as a filter or a format does.
type pass struct{ *block.Edge }

func (pass) Close() error { return nil }

func above(t testing.TB, g *block.Graph, name string, below *block.Node) *block.Node {
	t.Helper()
	return blocktest.NewParent(t, g, name, block.Options{Discard: true}, []block.Child{{Name: "file", Node: below}},
		func(edges []*block.Edge) (block.Driver, error) { return pass{edges[0]}, nil })
}

func filter(t testing.TB, g *block.Graph, name string, below *block.Node) *block.Node {
	t.Helper()
	return blocktest.NewFilter(t, g, name, below, func(e *block.Edge) (block.Driver, error) { return pass{e}, nil })
}
