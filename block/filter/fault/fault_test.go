// SPDX-License-Identifier: Apache-2.0

package fault

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/blocktest"
	"github.com/blkmirror/blkmirror/block/driver/raw"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var bg = context.Background()

const size = 1 << 20

// node puts rules on a disk in a graph of its own.
func node(t *testing.T, m *blocktest.Mem, o Options) (*block.Graph, *block.Node) {
	t.Helper()
	g := block.NewGraph()
	below := blocktest.NewNode(t, g, "image", m, block.Options{Discard: true})
	return g, blocktest.NewParent(t, g, "fault", block.Options{Discard: true}, []block.Child{{Name: "image", Node: below}},
		func(e []*block.Edge) (block.Driver, error) { return Open(e[0], o) })
}

func newMem() *blocktest.Mem { return blocktest.NewMem(blocktest.MemOptions{Size: size}) }

func none(r Rule) Rule {
	r.Event = EventNone
	if r.Types == 0 {
		r.Types = DefaultTypes
	}
	return r
}

// requests are one of each kind, on the first 4 KiB.
var requests = []struct {
	kind IOType
	name string
	do   func(n *block.Node) error
}{
	{Read, "read", func(n *block.Node) error { return n.ReadAt(bg, make([]byte, 4096), 0) }},
	{Write, "write", func(n *block.Node) error { return n.WriteAt(bg, make([]byte, 4096), 0, 0) }},
	{WriteZeroes, "write-zeroes", func(n *block.Node) error { return n.WriteZeroes(bg, 0, 4096, 0) }},
	{Discard, "discard", func(n *block.Node) error { return n.Discard(bg, 0, 4096) }},
	{Flush, "flush", func(n *block.Node) error { return n.Flush(bg) }},
	{BlockStatus, "block-status", func(n *block.Node) error {
		_, err := n.BlockStatus(bg, 0, 4096)
		return err
	}},
}

func TestWithoutRulesPassesTheSuite(t *testing.T) {
	for _, o := range []Options{{}, {Align: 4096, MaxTransfer: 16384}} {
		blocktest.TestDriver(t, blocktest.Suite{Open: func(t *testing.T, size int64) block.Driver {
			_, n := node(t, blocktest.NewMem(blocktest.MemOptions{Size: size}), o)
			return n.Driver()
		}})
	}
}

func TestEachKindOfRequest(t *testing.T) {
	for _, rule := range append(slices.Clone(requests), struct {
		kind IOType
		name string
		do   func(n *block.Node) error
	}{DefaultTypes, "any", nil}) {
		_, n := node(t, newMem(), Options{Rules: []Rule{none(Rule{Types: rule.kind, Sector: -1, Errno: syscall.ENOSPC})}})
		for _, r := range requests {
			err := r.do(n)
			if rule.kind&r.kind == 0 {
				if err != nil {
					t.Errorf("rule for %s, request %s: %v", rule.name, r.name, err)
				}
			} else if !errors.Is(err, syscall.ENOSPC) || block.KindOf(err) != block.KindNoSpace {
				t.Errorf("rule for %s, request %s: %v", rule.name, r.name, err)
			}
		}
	}
}

func TestSector(t *testing.T) {
	m := newMem()
	_, n := node(t, m, Options{Rules: []Rule{none(Rule{Sector: 8, Errno: syscall.EIO})}})
	p := make([]byte, 1024)
	for _, c := range []struct {
		off   int64
		fails bool
	}{{0, false}, {3072, false}, {3073, true}, {4096, true}, {4097, false}, {8192, false}} {
		if err := n.WriteAt(bg, p, c.off, 0); (err != nil) != c.fails {
			t.Errorf("write at %d: %v", c.off, err)
		}
	}
	if err := n.Flush(bg); err != nil { // it touches no sector
		t.Error(err)
	}
}

func TestOnce(t *testing.T) {
	_, n := node(t, newMem(), Options{Rules: []Rule{
		none(Rule{Types: Write, Sector: -1, Errno: syscall.EIO, Once: true}),
		none(Rule{Types: Write, Sector: -1, Errno: syscall.ENOSPC, Once: true}),
	}})
	for i, want := range []error{syscall.EIO, syscall.ENOSPC, nil, nil} {
		if err := n.WriteAt(bg, make([]byte, 512), 0, 0); !errors.Is(err, want) {
			t.Errorf("write %d: %v, want %v", i, err, want)
		}
	}
}

// A failed request must not have reached the disk.
func TestFailedWriteChangesNothing(t *testing.T) {
	m := newMem()
	_, n := node(t, m, Options{Rules: []Rule{none(Rule{Sector: -1, Errno: syscall.EIO})}})
	if n.WriteAt(bg, []byte("x"), 0, 0) == nil || n.WriteZeroes(bg, 0, 4096, 0) == nil {
		t.Error("written")
	}
	if len(m.Calls()) != 0 {
		t.Errorf("calls %v", m.Calls())
	}
}

func TestStates(t *testing.T) {
	_, n := node(t, newMem(), Options{
		Rules: []Rule{
			none(Rule{State: 2, Types: Write, Sector: -1, Errno: syscall.EIO}),
			{Event: "l2_update", State: 3, Types: Read, Sector: -1, Errno: syscall.ENOSPC, Once: true},
		},
		States: []SetState{
			{Event: "l1_update", State: 1, NewState: 2},
			{Event: "l1_update", State: 2, NewState: 3},
			{Event: "cow_read", NewState: 1},
		},
	})
	f := n.Driver().(*Fault)
	try := func(what string, write, read error) {
		t.Helper()
		if err := n.WriteAt(bg, make([]byte, 512), 0, 0); !errors.Is(err, write) {
			t.Errorf("%s: write: %v", what, err)
		}
		if err := n.ReadAt(bg, make([]byte, 512), 0); !errors.Is(err, read) {
			t.Errorf("%s: read: %v", what, err)
		}
	}
	try("state 1", nil, nil)
	f.Event("l1_update")
	try("state 2", syscall.EIO, nil)
	f.Event("l2_update") // its rule is for another state
	try("state 2", syscall.EIO, nil)
	f.Event("l1_update")
	try("state 3", nil, nil)
	f.Event("l2_update")
	try("state 3, rule active", nil, syscall.ENOSPC)
	f.Event("l2_update")
	try("the rule is gone", nil, nil)
	f.Event("cow_read")
	f.Event("l1_update")
	try("state 2 again", syscall.EIO, nil)
}

func TestEventsOfRequests(t *testing.T) {
	for _, c := range []struct {
		event       string
		write, zero bool // which fail
	}{
		{"write_aio", true, false},
		{"pwritev", true, false},
		{"pwritev_zero", false, true},
		{"pwritev_done", true, false}, // after the zeroes
	} {
		g, n := node(t, newMem(), Options{Rules: []Rule{{Event: c.event, Types: Write | WriteZeroes, Sector: -1,
			Errno: syscall.EIO, Once: true}}})
		r := blocktest.NewParent(t, g, "raw", block.Options{}, []block.Child{{Name: "file", Node: n}},
			func(e []*block.Edge) (block.Driver, error) { return raw.Open(e[0], raw.Options{}) })
		zero := r.WriteZeroes(bg, 0, 512, 0)
		if (zero != nil) != c.zero {
			t.Errorf("%s: zeroes: %v", c.event, zero)
		}
		write := r.WriteAt(bg, []byte("x"), 0, 0)
		if (write != nil) != c.write {
			t.Errorf("%s: write: %v", c.event, write)
		}
	}
	g, n := node(t, newMem(), Options{Rules: []Rule{{Event: "read_aio", Types: Read, Sector: -1, Errno: syscall.EIO}}})
	r := blocktest.NewParent(t, g, "raw", block.Options{}, []block.Child{{Name: "file", Node: n}},
		func(e []*block.Edge) (block.Driver, error) { return raw.Open(e[0], raw.Options{}) })
	if err := n.ReadAt(bg, make([]byte, 1), 0); err != nil {
		t.Errorf("a read that nothing announced: %v", err)
	}
	if err := r.ReadAt(bg, make([]byte, 1), 0); !errors.Is(err, syscall.EIO) {
		t.Errorf("a read of a raw node: %v", err)
	}
}

func TestDelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMem()
		_, n := node(t, m, Options{Rules: []Rule{
			none(Rule{Types: Read, Sector: -1, Delay: time.Second}),
			none(Rule{Types: Write, Sector: -1, Delay: time.Minute, Errno: syscall.EIO}),
			none(Rule{Types: Discard, Sector: -1, Delay: time.Hour}),
		}})
		start := time.Now()
		if err := n.ReadAt(bg, make([]byte, 512), 0); err != nil || time.Since(start) != time.Second {
			t.Errorf("read after %v: %v", time.Since(start), err)
		}
		start = time.Now()
		if err := n.WriteAt(bg, make([]byte, 512), 0, 0); !errors.Is(err, syscall.EIO) || time.Since(start) != time.Minute {
			t.Errorf("write after %v: %v", time.Since(start), err)
		}
		ctx, cancel := context.WithTimeout(bg, time.Second)
		defer cancel()
		start = time.Now()
		if err := n.Discard(ctx, 0, 512); err == nil || time.Since(start) != time.Second {
			t.Errorf("discard whose sender gives up, after %v: %v", time.Since(start), err)
		}
		if reads, _ := m.Count(block.OpRead); reads != 1 {
			t.Errorf("%d reads", reads)
		}
	})
}

func TestPretendedLimits(t *testing.T) {
	m := newMem()
	_, n := node(t, m, Options{Align: 4096, MaxTransfer: 8192})
	data := bytes.Repeat([]byte{7}, 20000)
	if err := n.WriteAt(bg, data, 100, 0); err != nil {
		t.Fatal(err)
	}
	for _, c := range m.Calls() {
		if c.Off%4096 != 0 || c.Len%4096 != 0 || c.Len > 8192 {
			t.Errorf("call %v", c)
		}
	}
	if got := m.Bytes(); !bytes.Equal(got[100:20100], data) || !block.IsZero(got[:100]) || !block.IsZero(got[20100:]) {
		t.Error("wrong content")
	}
}

func TestBadOptions(t *testing.T) {
	g := block.NewGraph()
	below := blocktest.NewNode(t, g, "image", newMem(), block.Options{})
	for _, o := range []Options{{Align: 3}, {Align: -4096}, {Align: 1 << 31}, {MaxTransfer: -1},
		{Align: 4096, MaxTransfer: 6000}} {
		err := g.Change(bg, func(tx *block.Tx) error {
			_, err := tx.AddNode(block.NodeConfig{Name: "f", Children: []block.Child{{Name: "image", Node: below}},
				Open: func(e []*block.Edge) (block.Driver, error) { return Open(e[0], o) }})
			return err
		})
		if err == nil {
			t.Errorf("%+v was accepted", o)
		}
	}
}
