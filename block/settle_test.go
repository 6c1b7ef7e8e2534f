// SPDX-License-Identifier: Apache-2.0

package block_test

import (
	"errors"
	"testing"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/blocktest"
)

// A file passes, in one change, from a node that goes to one that comes, and back if the change fails.
func TestRemovedNodeLetsGoBeforeOthersTake(t *testing.T) {
	g := block.NewGraph()
	old, next := blocktest.NewMem(blocktest.MemOptions{Size: 1 << 20}), blocktest.NewMem(blocktest.MemOptions{Size: 1 << 20})
	locked := func(other *blocktest.Mem) func(need, share block.Perm) error {
		return func(need, _ block.Perm) error {
			if held, _ := other.Permissions(); need&held != 0 {
				return errors.New("the file is locked")
			}
			return nil
		}
	}
	old.SetPermissionHook(locked(next))
	next.SetPermissionHook(locked(old))
	n := blocktest.NewNode(t, g, "old", old, block.Options{})
	b := blocktest.Attach(t, g, n, "guest", block.PermWrite, 0)
	exchange := func(end error) error {
		return g.Change(bg, func(tx *block.Tx) error {
			tx.Detach(b)
			if err := tx.RemoveNode(n); err != nil {
				return err
			}
			fresh, err := tx.AddNode(block.NodeConfig{Name: "next", DriverName: "test", Monitor: true, Open: opens(next)})
			if err != nil {
				return err
			}
			if _, err := tx.Attach(fresh, "guest", block.PermWrite, 0); err != nil {
				return err
			}
			return errors.Join(tx.ApplyPermissions(bg), end)
		})
	}
	failure := errors.New("another step failed")
	if err := exchange(failure); !errors.Is(err, failure) {
		t.Fatal(err)
	}
	if need, _ := old.Permissions(); need != block.PermWrite || old.Closed() > 0 {
		t.Errorf("after a change that was taken back the old node has %v", need)
	}
	next = blocktest.NewMem(blocktest.MemOptions{Size: 1 << 20})
	next.SetPermissionHook(locked(old))
	must(t, exchange(nil))
	if need, _ := next.Permissions(); need != block.PermWrite || old.Closed() != 1 {
		t.Errorf("the new node has %v", need)
	}
}
