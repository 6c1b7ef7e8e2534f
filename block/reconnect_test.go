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

// Suspects lists one range.
func (r *reconnects) Suspects(f func(off, n int64)) { f(8192, 4096) }

// window shows a disk from an offset on.
type window struct {
	*blocktest.Mem
	file *block.Edge
	from int64
}

func (w *window) Mapped(off int64) (*block.Edge, int64) { return w.file, off + w.from }

func TestSuspectsOfNodesBelow(t *testing.T) {
	g := block.NewGraph()
	d := &reconnects{Mem: newMem(mib), users: map[int]func(bool){}}
	disk := blocktest.NewNode(t, g, "disk", d, block.Options{})
	for _, c := range []struct {
		from, size int64
		want       string
	}{
		{0, mib, "[8192 4096]"}, {8192, 65536, "[0 4096]"}, {10240, 65536, "[0 2048]"}, {0, 9216, "[8192 1024]"}, {12288, 4096, "[]"}, {0, 4096, "[]"},
	} {
		g := block.NewGraph()
		file := blocktest.NewNode(t, g, "file", d, block.Options{})
		top := blocktest.Add(t, g, block.NodeConfig{Name: "window", DriverName: "test", Monitor: true,
			Children: []block.Child{{Name: "file", Node: file}},
			Open: func(edges []*block.Edge) (block.Driver, error) {
				return &window{newMem(c.size), edges[0], c.from}, nil
			}})
		got := []int64{}
		top.Suspects(func(off, n int64) { got = append(got, off, n) })
		if fmt.Sprint(got) != c.want || !top.Reconnects() {
			t.Errorf("%d bytes from %d: %v, want %s", c.size, c.from, got, c.want)
		}
	}
	n := 0
	filter(t, g, "filter", disk).Suspects(func(int64, int64) { n++ })
	above(t, g, "format", disk).Suspects(func(int64, int64) { n += 10 })
	if n != 1 {
		t.Errorf("a filter and a format: %d", n)
	}
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
