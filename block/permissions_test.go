// SPDX-License-Identifier: Apache-2.0

package block_test

import (
	"errors"
	"testing"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/blocktest"
)

const (
	readWrite = block.PermConsistentRead | block.PermWrite
	notResize = block.PermAll &^ block.PermResize
)

func expectHeld(t *testing.T, m *blocktest.Mem, need, share block.Perm) {
	t.Helper()
	if n, s := m.Permissions(); n != need || s != share {
		t.Errorf("held for '%v', shared for '%v'; want '%v' and '%v'", n, s, need, share)
	}
}

func TestPermissionsReachTheImage(t *testing.T) {
	g, a, m := disk(t, blocktest.MemOptions{Size: mib}, block.Options{})
	parent := above(t, g, "parent", a)
	expectHeld(t, m, 0, block.PermAll)
	reader := blocktest.Attach(t, g, parent, "reader", block.PermConsistentRead, block.PermAll)
	expectHeld(t, m, block.PermConsistentRead, block.PermAll)
	writer := blocktest.Attach(t, g, a, "writer", readWrite, notResize)
	expectHeld(t, m, readWrite, notResize)
	blocktest.Change(t, g, func(tx *block.Tx) error {
		tx.SetPermissions(writer, block.PermConsistentRead, block.PermAll&^block.PermWrite)
		return nil
	})
	expectHeld(t, m, block.PermConsistentRead, block.PermAll&^block.PermWrite)
	blocktest.Detach(t, g, writer)
	expectHeld(t, m, block.PermConsistentRead, block.PermAll)
	blocktest.Detach(t, g, reader)
	expectHeld(t, m, 0, block.PermAll)
}

func TestAConflictNamesBothAndChangesNothing(t *testing.T) {
	g, a, m := disk(t, blocktest.MemOptions{Size: mib}, block.Options{})
	other := newMem(mib)
	b := blocktest.NewNode(t, g, "b", other, block.Options{})
	parent := above(t, g, "parent", a)
	blocktest.Attach(t, g, parent, "export 'e'", readWrite, notResize)
	want := "Permission conflict on node 'disk': permissions 'write' are both required by node 'parent' (as its 'file' child)" +
		" and unshared by job 'm'"
	attach := func(tx *block.Tx) error {
		_, err := tx.Attach(b, "job 'm'", block.PermWrite, block.PermWriteUnchanged)
		must(t, err)
		_, err = tx.Attach(a, "job 'm'", block.PermConsistentRead, notResize&^block.PermWrite)
		return err
	}
	err := g.Change(bg, attach)
	if err == nil || err.Error() != want || block.KindOf(err) != block.KindPermission {
		t.Errorf("%v (%v), want %s", err, block.KindOf(err), want)
	}
	expectHeld(t, m, readWrite, notResize)
	expectHeld(t, other, 0, block.PermAll)
	if len(g.Users(a)) != 1 || len(g.Users(b)) != 0 {
		t.Errorf("users %v and %v", g.Users(a), g.Users(b))
	}
	// The other way round: the newcomer needs what somebody does not share.
	err = g.Change(bg, func(tx *block.Tx) error {
		_, err := tx.Attach(parent, "growing export 'g'", readWrite|block.PermResize, block.PermAll)
		return err
	})
	want = "Permission conflict on node 'parent': permissions 'resize' are both required by growing export 'g' and unshared by export 'e'"
	if err == nil || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
	expectHeld(t, m, readWrite, notResize)
}

// When the second image cannot be locked, the first gets back what it held, and so do all edges.
func TestARefusedLockRollsBackTheOthers(t *testing.T) {
	g, a, first := disk(t, blocktest.MemOptions{Size: mib}, block.Options{})
	second := newMem(mib)
	b := blocktest.NewNode(t, g, "b", second, block.Options{})
	userA := blocktest.Attach(t, g, a, "a", block.PermConsistentRead, block.PermAll)
	userB := blocktest.Attach(t, g, b, "b", block.PermConsistentRead, block.PermAll)
	refusal := errors.New(`Failed to get "write" lock`)
	for _, refuser := range []*blocktest.Mem{first, second} {
		refuser.SetPermissionHook(func(need, _ block.Perm) error {
			if need&block.PermWrite != 0 {
				return refusal
			}
			return nil
		})
		err := g.Change(bg, func(tx *block.Tx) error {
			tx.SetPermissions(userA, readWrite, notResize)
			tx.SetPermissions(userB, readWrite, notResize)
			return nil
		})
		if !errors.Is(err, refusal) || err.Error() != refusal.Error() {
			t.Errorf("error %v", err)
		}
		expectHeld(t, first, block.PermConsistentRead, block.PermAll)
		expectHeld(t, second, block.PermConsistentRead, block.PermAll)
		refuser.SetPermissionHook(nil)
	}
	// And later changes start from there.
	blocktest.Change(t, g, func(tx *block.Tx) error {
		tx.SetPermissions(userA, readWrite, notResize)
		return nil
	})
	expectHeld(t, first, readWrite, notResize)
}

// In one change one image can let go of what another takes, in whatever order the nodes were touched.
func TestLocksAreLetGoBeforeOthersAreTaken(t *testing.T) {
	g, a, first := disk(t, blocktest.MemOptions{Size: mib}, block.Options{})
	second := newMem(mib)
	b := blocktest.NewNode(t, g, "b", second, block.Options{})
	mems := map[*blocktest.Mem]block.Perm{first: 0, second: 0}
	for m := range mems { // two nodes of one file: only one may write
		m.SetPermissionHook(func(need, _ block.Perm) error {
			for other, held := range mems {
				if other != m && held&need&block.PermWrite != 0 {
					return errors.New("two writers")
				}
			}
			mems[m] = need
			return nil
		})
	}
	x := blocktest.Attach(t, g, a, "x", block.PermWrite, block.PermAll)
	y := blocktest.Attach(t, g, b, "y", 0, block.PermAll)
	for _, order := range [][2]*block.Backend{{y, x}, {x, y}} {
		for _, writer := range order {
			blocktest.Change(t, g, func(tx *block.Tx) error {
				for _, u := range order {
					need := block.Perm(0)
					if u == writer {
						need = block.PermWrite
					}
					tx.SetPermissions(u, need, block.PermAll)
				}
				return nil
			})
		}
	}
}

func TestANewDriverIsNotToldToLockWhenItsNodeIsTakenBack(t *testing.T) {
	g := block.NewGraph()
	m := newMem(mib)
	m.SetPermissionHook(func(_, share block.Perm) error {
		if share != block.PermAll {
			t.Errorf("told to share only '%v'", share)
		}
		return nil
	})
	bad := newMem(mib)
	bad.SetPermissionHook(func(need, _ block.Perm) error {
		if need != 0 {
			return errors.New("refused")
		}
		return nil
	})
	err := g.Change(bg, func(tx *block.Tx) error {
		for name, d := range map[string]*blocktest.Mem{"good": m, "bad": bad} {
			n, err := tx.AddNode(block.NodeConfig{Name: name, Open: func([]*block.Edge) (block.Driver, error) { return d, nil }})
			must(t, err)
			_, err = tx.Attach(n, "user", block.PermConsistentRead, block.PermAll)
			must(t, err)
		}
		return nil
	})
	if err == nil {
		t.Fatal("no error")
	}
}

type chooser struct {
	pass
	choose func(need, share block.Perm) (block.Perm, block.Perm)
}

func (c chooser) ChildPermissions(child string, need, share block.Perm) (block.Perm, block.Perm) {
	if child != "file" {
		return 0, block.PermAll
	}
	return c.choose(need, share)
}

func TestADriverChoosesWhatItNeedsOfItsChildren(t *testing.T) {
	g, a, m := disk(t, blocktest.MemOptions{Size: mib}, block.Options{})
	side := newMem(mib)
	b := blocktest.NewNode(t, g, "b", side, block.Options{})
	n := blocktest.NewParent(t, g, "n", block.Options{}, []block.Child{{Name: "file", Node: a}, {Name: "backing", Node: b}},
		func(edges []*block.Edge) (block.Driver, error) {
			return chooser{pass{edges[0]}, func(need, share block.Perm) (block.Perm, block.Perm) {
				return need | block.PermResize, share &^ block.PermWrite
			}}, nil
		})
	blocktest.Attach(t, g, n, "user", readWrite, block.PermAll)
	expectHeld(t, m, readWrite|block.PermResize, block.PermAll&^block.PermWrite)
	expectHeld(t, side, 0, block.PermAll)
}

func TestForceShareLeavesEverything(t *testing.T) {
	g, a, m := disk(t, blocktest.MemOptions{Size: mib}, block.Options{ReadOnly: true})
	n := blocktest.NewParent(t, g, "n", block.Options{ReadOnly: true, ForceShare: true}, []block.Child{{Name: "file", Node: a}},
		func(edges []*block.Edge) (block.Driver, error) { return pass{edges[0]}, nil })
	blocktest.Attach(t, g, n, "user", block.PermConsistentRead, 0)
	expectHeld(t, m, block.PermConsistentRead, block.PermAll)
}

func TestReadOnlyNodes(t *testing.T) {
	g, a, m := disk(t, blocktest.MemOptions{Size: mib}, block.Options{ReadOnly: true, Discard: true})
	attach := func(n *block.Node, need block.Perm) error {
		return g.Change(bg, func(tx *block.Tx) error {
			_, err := tx.Attach(n, "user", need, block.PermAll)
			return err
		})
	}
	if err := attach(a, readWrite); block.KindOf(err) != block.KindReadOnly {
		t.Errorf("a writer: %v", err)
	}
	parent := above(t, g, "parent", a) // writable itself
	if err := attach(parent, readWrite); block.KindOf(err) != block.KindReadOnly {
		t.Errorf("a writer above: %v", err)
	}
	must(t, attach(parent, block.PermConsistentRead))
	for name, err := range map[string]error{
		"write": a.WriteAt(bg, make([]byte, 1), 0, 0), "zeroes": a.WriteZeroes(bg, 0, 1, 0), "discard": a.Discard(bg, 0, 512),
	} {
		if block.KindOf(err) != block.KindReadOnly || err == nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	must(t, a.ReadAt(bg, make([]byte, 1), 0))
	must(t, a.Flush(bg))
	for _, op := range []block.Op{block.OpWrite, block.OpZero, block.OpTrim} {
		if n, _ := m.Count(op); n > 0 {
			t.Errorf("%s reached the driver", op)
		}
	}
}

func TestPermNames(t *testing.T) {
	if got := (block.PermConsistentRead | block.PermResize).String(); got != "consistent read, resize" {
		t.Error(got)
	}
	if got := block.PermAll.String(); got != "consistent read, write, write unchanged, resize" {
		t.Error(got)
	}
}
