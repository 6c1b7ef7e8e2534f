// SPDX-License-Identifier: Apache-2.0

package block_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/blocktest"
)

func TestNodeNames(t *testing.T) {
	g := block.NewGraph()
	add := func(name string) error {
		return g.Change(bg, func(tx *block.Tx) error {
			_, err := tx.AddNode(block.NodeConfig{Name: name, Open: func([]*block.Edge) (block.Driver, error) { return newMem(512), nil }})
			return err
		})
	}
	for _, name := range []string{"a", "A-b_c.d", strings.Repeat("x", 31)} {
		if err := add(name); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
	for name, text := range map[string]string{
		"1abc": "Invalid node-name: '1abc'", "a b": "Invalid node-name: 'a b'", "#block1": "Invalid node-name: '#block1'",
		"é": "Invalid node-name: 'é'", "-": "Invalid node-name: '-'", "a/": "Invalid node-name: 'a/'",
		strings.Repeat("x", 32): "Node name too long", "a": "Duplicate nodes with node-name='a'",
	} {
		if err := add(name); err == nil || !strings.HasPrefix(err.Error(), text) {
			t.Errorf("%q: %v, want %q", name, err, text)
		}
	}
	must(t, add(""))
	must(t, add(""))
	var auto []string
	for _, n := range g.Nodes() {
		if n.Implicit() {
			auto = append(auto, n.Name())
		}
	}
	if len(auto) != 2 || auto[0] == auto[1] || !strings.HasPrefix(auto[0], "#block") {
		t.Errorf("generated names %v", auto)
	}
	if block.WellFormedID("") || !block.WellFormedID("z9") {
		t.Error("wrong idea of an id")
	}
	_, err := g.Node("none")
	if err == nil || err.Error() != "Cannot find device='none' nor node-name='none'" || block.KindOf(err) != block.KindNotFound {
		t.Errorf("unknown node: %v", err)
	}
}

func names(nodes []*block.Node) string {
	var list []string
	for _, n := range nodes {
		list = append(list, n.Name())
	}
	slices.Sort(list)
	return strings.Join(list, " ")
}

// Everything that a change did is taken back when it fails at its end: nodes, users, blockers, what edges lead to.
func TestAFailedChangeLeavesNothing(t *testing.T) {
	g, a, ma := disk(t, blocktest.MemOptions{Size: mib}, block.Options{})
	b := blocktest.NewNode(t, g, "b", newMem(mib), block.Options{})
	gone := blocktest.NewNode(t, g, "gone", newMem(mib), block.Options{})
	user := blocktest.Attach(t, g, a, "user", block.PermConsistentRead, block.PermAll)
	fresh := newMem(mib)
	failure := errors.New("on purpose")
	err := g.Change(bg, func(tx *block.Tx) error {
		n, err := tx.AddNode(block.NodeConfig{Name: "new", Children: []block.Child{{Name: "file", Node: a}},
			Open: func([]*block.Edge) (block.Driver, error) { return fresh, nil }})
		must(t, err)
		_, err = tx.Attach(n, "writer", block.PermWrite, 0)
		must(t, err)
		must(t, tx.Drain(bg, nil, a, b))
		tx.Replace(a, b)
		tx.SetPermissions(user, block.PermAll, 0)
		tx.Block(b, "for a reason")
		must(t, tx.RemoveNode(gone))
		return failure
	})
	if !errors.Is(err, failure) {
		t.Fatal(err)
	}
	if got := names(g.Nodes()); got != "b disk gone" {
		t.Errorf("nodes %s", got)
	}
	if user.Node() != a || len(g.Users(a)) != 1 || len(g.Users(b)) != 0 {
		t.Errorf("users of a %v, of b %v", g.Users(a), g.Users(b))
	}
	if b.Busy() != nil {
		t.Error("a blocker is left")
	}
	if fresh.Closed() != 1 {
		t.Errorf("the new driver was closed %d times", fresh.Closed())
	}
	if user.Gate().Closed() {
		t.Error("a gate is left closed")
	}
	if need, share := ma.Permissions(); need != block.PermConsistentRead || share != block.PermAll {
		t.Errorf("the image is held for %v, shared for %v", need, share)
	}
	must(t, user.ReadAt(bg, make([]byte, 512), 0))
	must(t, gone.ReadAt(bg, make([]byte, 512), 0))
}

func TestADriverThatDoesNotOpenLeavesNothing(t *testing.T) {
	g, a, _ := disk(t, blocktest.MemOptions{Size: mib}, block.Options{})
	err := g.Change(bg, func(tx *block.Tx) error {
		_, err := tx.AddNode(block.NodeConfig{Name: "new", Children: []block.Child{{Name: "file", Node: a}},
			Open: func([]*block.Edge) (block.Driver, error) { return nil, errors.New("damaged header") }})
		return err
	})
	if err == nil || err.Error() != "damaged header" {
		t.Errorf("error %v", err)
	}
	if len(g.Users(a)) != 0 || names(g.Nodes()) != "disk" {
		t.Errorf("users %v, nodes %s", g.Users(a), names(g.Nodes()))
	}
}

func TestRemoveNodeClosesWhatOnlyItUsed(t *testing.T) {
	g := block.NewGraph()
	mine, inline := newMem(mib), newMem(mib)
	own := blocktest.NewNode(t, g, "own", mine, block.Options{})
	var child *block.Node
	blocktest.Change(t, g, func(tx *block.Tx) (err error) {
		child, err = tx.AddNode(block.NodeConfig{Open: func([]*block.Edge) (block.Driver, error) { return inline, nil }})
		return err
	})
	parent := blocktest.NewParent(t, g, "parent", block.Options{}, []block.Child{{Name: "file", Node: child}, {Name: "backing", Node: own}},
		func(edges []*block.Edge) (block.Driver, error) { return pass{edges[0]}, nil })
	user := blocktest.Attach(t, g, parent, "export 'e'", block.PermConsistentRead, block.PermAll)
	remove := func(n *block.Node) error {
		return g.Change(bg, func(tx *block.Tx) error { return tx.RemoveNode(n) })
	}
	if err := remove(parent); block.KindOf(err) != block.KindBusy || err == nil || err.Error() != "Node parent is in use by export 'e'" {
		t.Errorf("in use by an export: %v", err)
	}
	if err := remove(own); err == nil || err.Error() != "Node own is in use by node 'parent' (as its 'backing' child)" {
		t.Errorf("in use by a node: %v", err)
	}
	if !g.HasNodeAbove(own) || g.HasNodeAbove(parent) {
		t.Error("wrong idea of what stands on what")
	}
	blocktest.Detach(t, g, user)
	must(t, remove(parent))
	if names(g.Nodes()) != "own" || inline.Closed() != 1 || mine.Closed() != 0 {
		t.Errorf("nodes %s, closed %d and %d times", names(g.Nodes()), inline.Closed(), mine.Closed())
	}
	must(t, remove(own))
	if mine.Closed() != 1 {
		t.Errorf("closed %d times", mine.Closed())
	}
}

// Who comes later stands above a filter, and a filter counts only for the child whose disk it shows.
func TestTopIsTheTopmostFilter(t *testing.T) {
	g, a, _ := disk(t, blocktest.MemOptions{Size: mib}, block.Options{})
	target := blocktest.NewNode(t, g, "target", newMem(mib), block.Options{})
	if g.Top(a) != a {
		t.Error("without filters")
	}
	format := above(t, g, "format", a)
	if g.Top(a) != a {
		t.Error("a format is taken for a filter")
	}
	inner := filter(t, g, "inner", a)
	outer := blocktest.Add(t, g, block.NodeConfig{Name: "outer", Filter: true,
		Children: []block.Child{{Name: "backing", Node: inner}, {Name: "target", Node: target, Hidden: true}},
		Open:     func(edges []*block.Edge) (block.Driver, error) { return pass{edges[0]}, nil }})
	for _, n := range []*block.Node{a, inner, outer} {
		if g.Top(n) != outer {
			t.Errorf("the top of %s is %s", n.Name(), g.Top(n).Name())
		}
	}
	if g.Top(target) != target || g.Top(format) != format {
		t.Error("the filter hides what is not its disk")
	}
	if len(outer.Children()) != 1 {
		t.Error("a hidden child shows")
	}
	if g.Shown(outer) != outer {
		t.Error("a filter with a name is not shown")
	}
	hidden := blocktest.Add(t, g, block.NodeConfig{Filter: true, Children: []block.Child{{Name: "file", Node: target}},
		Open: func(edges []*block.Edge) (block.Driver, error) { return pass{edges[0]}, nil }})
	if g.Shown(hidden) != target {
		t.Errorf("a filter without a name is shown as %s", g.Shown(hidden).Name())
	}
}

// Replace moves backends and nodes above alike, but not the edges of the node that comes in.
func TestReplaceMovesEveryUser(t *testing.T) {
	g, a, ma := disk(t, blocktest.MemOptions{Size: mib}, block.Options{})
	parent := above(t, g, "parent", a)
	direct := blocktest.Attach(t, g, a, "direct", block.PermConsistentRead|block.PermWrite, block.PermAll)
	indirect := blocktest.Attach(t, g, parent, "indirect", block.PermConsistentRead|block.PermWrite, block.PermAll)
	var f *block.Node
	blocktest.Change(t, g, func(tx *block.Tx) (err error) {
		must(t, tx.Drain(bg, nil, a))
		f, err = tx.AddNode(block.NodeConfig{Name: "filter", Filter: true, Children: []block.Child{{Name: "file", Node: a}},
			Open: func(edges []*block.Edge) (block.Driver, error) { return pass{edges[0]}, nil }})
		if err == nil {
			tx.Replace(a, f)
		}
		return err
	})
	if direct.Node() != f || parent.Children()[0].Node() != f || f.Children()[0].Node() != a {
		t.Fatal("an edge leads to the wrong node")
	}
	must(t, direct.WriteAt(bg, []byte{1}, 0, 0))
	must(t, indirect.WriteAt(bg, []byte{2}, 1, 0))
	if got := ma.Bytes(); got[0] != 1 || got[1] != 2 {
		t.Error("a write got lost")
	}
	// To another disk, and the filter out of the graph.
	mb := newMem(mib)
	b := blocktest.NewNode(t, g, "b", mb, block.Options{})
	blocktest.Change(t, g, func(tx *block.Tx) error {
		must(t, tx.Drain(bg, nil, f, b))
		tx.Replace(f, b)
		return tx.RemoveNode(f)
	})
	must(t, direct.WriteAt(bg, []byte{3}, 2, 0))
	must(t, indirect.WriteAt(bg, []byte{4}, 3, 0))
	if got := mb.Bytes(); got[2] != 3 || got[3] != 4 || !block.IsZero(ma.Bytes()[2:]) {
		t.Error("a write went to the old disk")
	}
	if got := names(g.Nodes()); got != "b disk parent" || len(g.Users(a)) != 0 {
		t.Errorf("nodes %s, users of the old disk %v", got, g.Users(a))
	}
	if need, _ := ma.Permissions(); need != 0 {
		t.Errorf("the old disk is still held for %v", need)
	}
	if need, _ := mb.Permissions(); need != block.PermConsistentRead|block.PermWrite {
		t.Errorf("the new disk is held for %v", need)
	}
}

func TestOneChangeAtATime(t *testing.T) {
	g, a, _ := disk(t, blocktest.MemOptions{Size: mib}, block.Options{})
	blocktest.Change(t, g, func(*block.Tx) error {
		ctx, cancel := context.WithCancel(bg)
		cancel()
		err := g.Change(ctx, func(*block.Tx) error { return errors.New("ran") })
		if block.KindOf(err) != block.KindShutdown {
			t.Errorf("a second change: %v", err)
		}
		if _, err := g.Node("disk"); err != nil || g.Top(a) != a { // looking is possible
			t.Error(err)
		}
		return nil
	})
}

func TestBlockers(t *testing.T) {
	g, a, _ := disk(t, blocktest.MemOptions{Size: mib}, block.Options{})
	var b *block.Blocker
	blocktest.Change(t, g, func(tx *block.Tx) error {
		b = tx.Block(a, "block device is in use by block job: mirror")
		return nil
	})
	resize := func() error {
		return g.Change(bg, func(tx *block.Tx) error { return tx.Resize(bg, a, 2*mib) })
	}
	if err := resize(); err == nil || err.Error() != "Node 'disk' is busy: block device is in use by block job: mirror" {
		t.Errorf("error %v", err)
	}
	blocktest.Change(t, g, func(tx *block.Tx) error {
		tx.Unblock(a, b)
		return nil
	})
	must(t, resize())
}

func TestResize(t *testing.T) {
	g, a, _ := disk(t, blocktest.MemOptions{Size: mib}, block.Options{})
	top := above(t, g, "above", above(t, g, "middle", a))
	resize := func(n *block.Node, size int64) error {
		return g.Change(bg, func(tx *block.Tx) error { return tx.Resize(bg, n, size) })
	}
	must(t, resize(a, 2*mib-100))
	if a.Size() != 2*mib || top.Size() != 2*mib {
		t.Errorf("sizes %d and %d", a.Size(), top.Size())
	}
	must(t, resize(top, mib))
	if a.Size() != mib || top.Size() != mib {
		t.Errorf("sizes %d and %d", a.Size(), top.Size())
	}
	if err := resize(a, -512); err == nil || err.Error() != "Parameter 'size' expects a >0 size" {
		t.Errorf("negative: %v", err)
	}
	user := blocktest.Attach(t, g, a, "export 'e'", block.PermConsistentRead, block.PermAll&^block.PermResize)
	if err := resize(a, 2*mib); block.KindOf(err) != block.KindPermission {
		t.Errorf("under a user that does not share it: %v", err)
	}
	blocktest.Detach(t, g, user)
	fixed := blocktest.NewNode(t, g, "fixed", blocktest.Plain(newMem(mib)), block.Options{})
	if err := resize(fixed, 2*mib); block.KindOf(err) != block.KindNotSupported || err.Error() != "Node 'fixed' (driver test) cannot be resized" {
		t.Errorf("a driver that cannot: %v", err)
	}
	if len(g.Users(a)) != 1 || len(g.Users(fixed)) != 0 { // the node above it
		t.Error("a resize left a user behind")
	}
}

func TestFileNameAndAllocation(t *testing.T) {
	g, a, m := disk(t, blocktest.MemOptions{Size: mib}, block.Options{})
	must(t, m.WriteAt(bg, make([]byte, 4096), 0, 0))
	target := newMem(mib)
	must(t, target.WriteAt(bg, make([]byte, 512), 0, 0))
	b := blocktest.NewNode(t, g, "b", target, block.Options{})
	parent := blocktest.NewParent(t, g, "p", block.Options{},
		[]block.Child{{Name: "file", Node: a}, {Name: "target", Node: b, Hidden: true}},
		func(edges []*block.Edge) (block.Driver, error) { return pass{edges[0]}, nil })
	if bytes, known := parent.AllocatedBytes(); bytes != 4096 || !known {
		t.Errorf("%d bytes, known %v", bytes, known)
	}
	if parent.FileName() != "mem:" {
		t.Errorf("file name %q", parent.FileName())
	}
	plain := blocktest.NewNode(t, g, "plain", blocktest.Plain(newMem(mib)), block.Options{})
	if _, known := plain.AllocatedBytes(); known || plain.FileName() != "" {
		t.Error("something is known of nothing")
	}
	if got := fmt.Sprint(g.Users(a)); got != "[node 'p' (as its 'file' child)]" {
		t.Errorf("users %s", got)
	}
}
