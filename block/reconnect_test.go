// SPDX-License-Identifier: Apache-2.0

package block_test

import (
	"fmt"
	"testing"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/blocktest"
)

// reconnects is a disk that has a new session whenever a test wants.
type reconnects struct {
	*blocktest.Mem
	users map[int]func(bool)
}

func (r *reconnects) OnReconnect(f func(unflushed bool)) (cancel func()) {
	id := len(r.users)
	r.users[id] = f
	return func() { delete(r.users, id) }
}

func TestOnReconnectReachesNodesBelow(t *testing.T) {
	g := block.NewGraph()
	d := &reconnects{Mem: newMem(mib), users: map[int]func(bool){}}
	top := above(t, g, "top", filter(t, g, "filter", blocktest.NewNode(t, g, "disk", d, block.Options{})))
	var got []bool
	cancel := top.OnReconnect(func(unflushed bool) { got = append(got, unflushed) })
	for _, f := range d.users {
		f(true)
	}
	if len(got) != 1 || !got[0] {
		t.Errorf("told %v", got)
	}
	cancel()
	if len(d.users) != 0 {
		t.Error("still registered")
	}
	_, plain, _ := disk(t, blocktest.MemOptions{Size: mib}, block.Options{})
	plain.OnReconnect(func(bool) {})()
}

func TestSuspectErrors(t *testing.T) {
	cause := &block.Error{Kind: block.KindNoSpace, Op: block.OpGraph, Err: fmt.Errorf("lost")}
	suspect := fmt.Errorf("more: %w", block.Suspect(cause))
	if !block.IsSuspect(suspect) || block.IsSuspect(cause) || block.IsSuspect(nil) {
		t.Error("suspect errors are not told from others")
	}
	if block.KindOf(suspect) != block.KindNoSpace || suspect.Error() != "more: lost" {
		t.Errorf("%v of kind %v", suspect, block.KindOf(suspect))
	}
}
