// SPDX-License-Identifier: Apache-2.0

package block_test

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"sync"
	"testing"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/blocktest"
	"github.com/blkmirror/blkmirror/block/driver/raw"
)

func reopen(g *block.Graph, list ...block.Reopen) error {
	return g.Change(bg, func(tx *block.Tx) error { return tx.Reopen(bg, list) })
}

func opens(d block.Driver) func([]*block.Edge) (block.Driver, error) {
	return func([]*block.Edge) (block.Driver, error) { return d, nil }
}

func rawNode(t testing.TB, g *block.Graph, name string, below *block.Node, o raw.Options) *block.Node {
	t.Helper()
	return blocktest.NewParent(t, g, name, block.Options{}, []block.Child{{Name: "file", Node: below}}, opensRaw(o))
}

func opensRaw(o raw.Options) func([]*block.Edge) (block.Driver, error) {
	return func(e []*block.Edge) (block.Driver, error) { return raw.Open(e[0], o) }
}

func TestReopenChangesOptionsUnderLoad(t *testing.T) {
	g, n, m := disk(t, blocktest.MemOptions{Size: 64 * kib}, block.Options{})
	b := blocktest.Attach(t, g, n, "guest", block.PermConsistentRead|block.PermWrite, block.PermAll)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := b.WriteAt(bg, make([]byte, 4096), 0, 0); err != nil {
					t.Error(err)
					return
				}
				_ = n.Options()
				_ = n.CanZeroUnmap()
			}
		})
	}
	for i := range 50 {
		must(t, reopen(g, block.Reopen{Node: n, Options: block.Options{Discard: i%2 == 0, DetectZeroes: block.DetectZeroesOn}}))
		must(t, reopen(g, block.Reopen{Node: n, Options: block.Options{}}))
	}
	close(stop)
	wg.Wait()
	m.ResetCalls()
	must(t, reopen(g, block.Reopen{Node: n, Options: block.Options{Discard: true, DetectZeroes: block.DetectZeroesUnmap}}))
	must(t, b.WriteAt(bg, make([]byte, 4096), 0, 0))
	if calls := m.Calls(); len(calls) != 1 || calls[0].String() != "write-zeroes 0+4096 unmap" {
		t.Errorf("calls %v", calls)
	}
	err := reopen(g, block.Reopen{Node: n, Options: block.Options{ReadOnly: true}})
	if block.KindOf(err) != block.KindReadOnly || n.Options().ReadOnly || !n.Options().Discard {
		t.Errorf("read-only under a writer: %v, options %+v", err, n.Options())
	}
	must(t, b.WriteAt(bg, []byte{1}, 0, 0))
	blocktest.Detach(t, g, b)
	must(t, reopen(g, block.Reopen{Node: n, Options: block.Options{ReadOnly: true}}))
	if err := n.WriteAt(bg, []byte{1}, 0, 0); block.KindOf(err) != block.KindReadOnly {
		t.Errorf("write to what is read-only now: %v", err)
	}
}

func TestReopenExchangesTheDriver(t *testing.T) {
	g, n, old := disk(t, blocktest.MemOptions{Size: 64 * kib}, block.Options{})
	b := blocktest.Attach(t, g, n, "guest", block.PermWrite, block.PermAll&^block.PermResize)
	must(t, b.WriteAt(bg, []byte("durable"), 0, 0))
	bits := addBitmap(t, g, n, block.BitmapConfig{Name: "b"})
	next := blocktest.NewMem(blocktest.MemOptions{Size: 64 * kib, Limits: block.Limits{RequestAlign: 4096}})
	next.SetPermissionHook(func(need, _ block.Perm) error {
		if held, _ := old.Permissions(); need != 0 && held != 0 {
			return errors.New("the old driver has not let go")
		}
		return nil
	})
	must(t, reopen(g, block.Reopen{Node: n, Options: block.Options{Direct: true}, Open: opens(next)}))
	if !bytes.HasPrefix(old.DurableBytes(), []byte("durable")) || old.Closed() != 1 || next.Closed() != 0 {
		t.Errorf("the old driver: flushed %v, closed %d times", bytes.HasPrefix(old.DurableBytes(), []byte("durable")), old.Closed())
	}
	if need, share := next.Permissions(); need != block.PermWrite || share != block.PermAll&^block.PermResize {
		t.Errorf("the new driver holds %v and shares %v", need, share)
	}
	must(t, b.WriteAt(bg, []byte("next"), 5, 0)) // padded, to the new limits
	if !bytes.Equal(next.Bytes()[5:9], []byte("next")) || n.Driver() != block.Driver(next) || !n.Options().Direct {
		t.Error("the new driver is not in use")
	}
	expectDirty(t, bits, "0")
}

// Whatever fails, all nodes are as before and no driver stays open.
func TestReopenIsAllOrNothing(t *testing.T) {
	for name, c := range map[string]struct {
		old, next func(m *blocktest.Mem)
		open      error
		later     error
	}{
		"flush": {old: func(m *blocktest.Mem) { m.SetHook(failOn(block.OpFlush)) }},
		"open":  {open: errors.New("scripted")},
		"permission": {next: func(m *blocktest.Mem) {
			m.SetPermissionHook(func(block.Perm, block.Perm) error { return errors.New("scripted") })
		}},
		"later": {later: errors.New("scripted")},
	} {
		g := block.NewGraph()
		first, old := newMem(64*kib), newMem(64*kib)
		a := blocktest.NewNode(t, g, "a", first, block.Options{})
		n := blocktest.NewNode(t, g, "n", old, block.Options{})
		b := blocktest.Attach(t, g, n, "guest", block.PermWrite, block.PermWrite)
		blocktest.Attach(t, g, a, "guest", block.PermWrite, block.PermWrite)
		must(t, b.WriteAt(bg, []byte("x"), 0, 0))
		next, other := newMem(64*kib), newMem(64*kib)
		if c.old != nil {
			c.old(old)
		}
		if c.next != nil {
			c.next(next)
		}
		opened := 0
		open := func(m *blocktest.Mem, err error) func([]*block.Edge) (block.Driver, error) {
			return func([]*block.Edge) (block.Driver, error) {
				if err == nil {
					opened++
				}
				return m, err
			}
		}
		err := g.Change(bg, func(tx *block.Tx) error {
			err := tx.Reopen(bg, []block.Reopen{
				{Node: n, Options: block.Options{Direct: true}, Open: open(next, c.open)},
				{Node: a, Options: block.Options{Discard: true}, Open: open(other, nil)},
			})
			if err == nil {
				err = c.later
			}
			return err
		})
		if err == nil {
			t.Fatalf("%s: no error", name)
		}
		if n.Options().Direct || a.Options().Discard || n.Driver() != block.Driver(old) || a.Driver() != block.Driver(first) {
			t.Errorf("%s: the nodes are not as before", name)
		}
		for what, m := range map[string]*blocktest.Mem{"n": old, "a": first} {
			if need, share := m.Permissions(); need != block.PermWrite || share != block.PermWrite || m.Closed() != 0 {
				t.Errorf("%s: driver of %s holds %v, shares %v, closed %d times", name, what, need, share, m.Closed())
			}
		}
		if closed := next.Closed() + other.Closed(); closed != opened {
			t.Errorf("%s: %d new drivers opened, %d closed", name, opened, closed)
		}
		must(t, b.WriteAt(bg, []byte("y"), 0, 0))
	}
}

func failOn(op block.Op) blocktest.Hook {
	return func(_ context.Context, c blocktest.Call) error {
		if c.Op == op {
			return errors.New("scripted")
		}
		return nil
	}
}

func TestReopenRepointsChildren(t *testing.T) {
	g := block.NewGraph()
	x, y := newMem(64*kib), newMem(64*kib)
	var inline *block.Node
	blocktest.Change(t, g, func(tx *block.Tx) (err error) {
		inline, err = tx.AddNode(block.NodeConfig{DriverName: "mem", Open: opens(x)})
		return err
	})
	named := blocktest.NewNode(t, g, "named", y, block.Options{})
	n := rawNode(t, g, "n", inline, raw.Options{})
	top := rawNode(t, g, "top", n, raw.Options{})
	b := blocktest.Attach(t, g, top, "guest", block.PermWrite, block.PermAll&^block.PermResize)
	point := func(n, to *block.Node) error {
		return reopen(g, block.Reopen{Node: n, Children: fileChild(to), Open: opensRaw(raw.Options{})})
	}
	for _, to := range []*block.Node{n, top} {
		if err := point(n, to); err == nil || !strings.Contains(err.Error(), "would create a cycle") {
			t.Errorf("to %s: %v", to.Name(), err)
		}
	}
	reader := blocktest.Attach(t, g, named, "reader", block.PermConsistentRead, block.PermConsistentRead)
	if err := point(n, named); block.KindOf(err) != block.KindPermission {
		t.Errorf("to a node that somebody else needs unchanged: %v", err)
	}
	must(t, b.WriteAt(bg, []byte("x"), 0, 0))
	if x.Bytes()[0] != 'x' || x.Closed() != 0 {
		t.Error("the child is not as before")
	}
	blocktest.Detach(t, g, reader)
	must(t, point(n, named))
	must(t, b.WriteAt(bg, []byte("y"), 0, 0))
	if y.Bytes()[0] != 'y' || x.Bytes()[0] != 'x' {
		t.Error("written to the wrong child")
	}
	if _, err := g.Node(inline.Name()); err == nil || x.Closed() != 1 {
		t.Errorf("the old child is still there, closed %d times", x.Closed())
	}
}

func TestReopenChangesSize(t *testing.T) {
	g := block.NewGraph()
	below := blocktest.NewNode(t, g, "below", newMem(64*kib), block.Options{})
	n := rawNode(t, g, "n", below, raw.Options{})
	top := rawNode(t, g, "top", n, raw.Options{})
	bits := addBitmap(t, g, top, block.BitmapConfig{Name: "b", Granularity: 4096})
	must(t, top.WriteAt(bg, []byte{1}, 20*kib, 0))
	b := blocktest.Attach(t, g, top, "export 'e'", block.PermConsistentRead, block.PermAll&^block.PermResize)
	window := func(offset int64) error {
		return reopen(g, block.Reopen{Node: n, Children: fileChild(below), Content: true,
			Open: opensRaw(raw.Options{Offset: offset})})
	}
	if err := window(32 * kib); block.KindOf(err) != block.KindPermission || !strings.Contains(err.Error(), "export 'e'") ||
		n.Size() != 64*kib || top.Size() != 64*kib {
		t.Errorf("under an export: %v, sizes %d and %d", err, n.Size(), top.Size())
	}
	blocktest.Detach(t, g, b)
	must(t, window(32*kib))
	if n.Size() != 32*kib || top.Size() != 32*kib || bits.Snapshot().Size() != 32*kib {
		t.Errorf("sizes %d and %d, bitmap %d", n.Size(), top.Size(), bits.Snapshot().Size())
	}
	expectDirty(t, bits, "5")
	must(t, bits.SetBusy(true))
	if err := window(0); block.KindOf(err) != block.KindBusy || n.Size() != 32*kib || top.Size() != 32*kib {
		t.Errorf("under a busy bitmap: %v, sizes %d and %d", err, n.Size(), top.Size())
	}
}

func TestReopenOfNodesInUseByAJob(t *testing.T) {
	g := block.NewGraph()
	below := blocktest.NewNode(t, g, "below", newMem(64*kib), block.Options{})
	other := blocktest.NewNode(t, g, "other", newMem(64*kib), block.Options{})
	low := rawNode(t, g, "low", below, raw.Options{})
	n := rawNode(t, g, "n", low, raw.Options{})
	blocktest.Change(t, g, func(tx *block.Tx) error {
		tx.Block(n, "block device is in use by block job: mirror")
		return nil
	})
	for what, r := range map[string]block.Reopen{
		"read-only":            {Node: n, Options: block.Options{ReadOnly: true}},
		"child":                {Node: n, Children: fileChild(other), Open: opensRaw(raw.Options{})},
		"child further below":  {Node: low, Children: fileChild(other), Open: opensRaw(raw.Options{})},
		"window further below": {Node: low, Children: fileChild(below), Content: true, Open: opensRaw(raw.Options{})},
	} {
		if err := reopen(g, r); block.KindOf(err) != block.KindBusy || !strings.Contains(err.Error(), "Node 'n' is busy") {
			t.Errorf("%s: %v", what, err)
		}
	}
	must(t, reopen(g, block.Reopen{Node: n, Options: block.Options{DetectZeroes: block.DetectZeroesOn}}))
}

func TestWriteThreshold(t *testing.T) {
	_, n, _ := disk(t, blocktest.MemOptions{Size: 64 * kib}, block.Options{})
	var told []int64
	tell := func(exceeded int64) { told = append(told, exceeded) }
	n.SetWriteThreshold(4096, tell)
	must(t, n.WriteAt(bg, make([]byte, 4096), 0, 0))
	must(t, n.ReadAt(bg, make([]byte, 4096), 4096))
	must(t, n.Discard(bg, 4096, 4096))
	if len(told) != 0 || n.WriteThreshold() != 4096 {
		t.Fatalf("told %v, threshold %d", told, n.WriteThreshold())
	}
	must(t, n.WriteAt(bg, make([]byte, 8192), 4096, 0))
	must(t, n.WriteAt(bg, make([]byte, 8192), 8192, 0))
	if len(told) != 1 || told[0] != 8192 || n.WriteThreshold() != 0 {
		t.Errorf("told %v, threshold %d", told, n.WriteThreshold())
	}
	n.SetWriteThreshold(1, tell)
	must(t, n.WriteZeroes(bg, 0, 512, 0))
	n.SetWriteThreshold(1, tell)
	n.SetWriteThreshold(0, nil)
	must(t, n.WriteAt(bg, make([]byte, 512), 0, 0))
	if len(told) != 2 || told[1] != 511 {
		t.Errorf("told %v", told)
	}
}

func fileChild(n *block.Node) []block.Child { return []block.Child{{Name: "file", Node: n}} }
