// SPDX-License-Identifier: Apache-2.0

package throttle

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/blocktest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const mib = 1 << 20

func group(t *testing.T, l Limits) *Group {
	t.Helper()
	g, err := NewGroup("g", l)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// node makes a throttled disk in a graph of its own.
func node(t *testing.T, g *Group, m *blocktest.Mem) *block.Node {
	t.Helper()
	graph := block.NewGraph()
	below := blocktest.NewNode(t, graph, "f", m, block.Options{Discard: true})
	return blocktest.NewFilter(t, graph, "t", below, func(e *block.Edge) (block.Driver, error) { return Open(e, g), nil })
}

func TestThrottlePassesTheSuite(t *testing.T) {
	for _, l := range []Limits{{}, {BPSTotal: Limit{Average: 1 << 40}, IOPSTotal: Limit{Average: 1 << 30}}} {
		blocktest.TestDriver(t, blocktest.Suite{Open: func(t *testing.T, size int64) block.Driver {
			return node(t, group(t, l), blocktest.NewMem(blocktest.MemOptions{Size: size})).Driver()
		}})
	}
}

func TestLimitsAreChecked(t *testing.T) {
	for _, c := range []struct {
		l    Limits
		text string
	}{
		{Limits{BPSTotal: Limit{Average: 1}, BPSRead: Limit{Average: 1}},
			"bps/iops/max total values and read/write values cannot be used at the same time"},
		{Limits{IOPSTotal: Limit{Average: 1, Max: 2}, IOPSWrite: Limit{Max: 2}},
			"bps/iops/max total values and read/write values cannot be used at the same time"},
		{Limits{IOPSSize: 4096}, "iops size requires an iops value to be set"},
		{Limits{BPSRead: Limit{Average: -1}}, "bps/iops/max values must be within [0, 1000000000000000]"},
		{Limits{BPSRead: Limit{Average: most + 1}}, "bps/iops/max values must be within [0, 1000000000000000]"},
		{Limits{BPSRead: Limit{Average: 1, MaxLength: 2}}, "burst length set without burst rate"},
		{Limits{BPSRead: Limit{Average: 1, Max: most, MaxLength: 2}}, "burst length too high for this burst rate"},
		{Limits{BPSRead: Limit{Max: 1}}, "bps_max/iops_max require corresponding bps/iops values"},
		{Limits{BPSRead: Limit{Average: 2, Max: 1}}, "bps_max/iops_max cannot be lower than bps/iops"},
	} {
		if _, err := NewGroup("g", c.l); err == nil || err.Error() != c.text || block.KindOf(err) != block.KindInvalid {
			t.Errorf("%+v: %v, want %q", c.l, err, c.text)
		}
	}
	g := group(t, Limits{BPSTotal: Limit{Average: 5}})
	if g.SetLimits(Limits{BPSRead: Limit{Max: 1}}) == nil || g.Limits().BPSTotal.Average != 5 {
		t.Error("wrong limits came into force")
	}
}

// run does requests one after the other and returns when each ended, in virtual milliseconds.
func run(t *testing.T, l Limits, requests ...func(n *block.Node) error) (ends []int64) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		n := node(t, group(t, l), blocktest.NewMem(blocktest.MemOptions{Size: 64 * mib}))
		start := time.Now()
		for _, do := range requests {
			if err := do(n); err != nil {
				t.Fatal(err)
			}
			ends = append(ends, time.Since(start).Milliseconds())
		}
	})
	return ends
}

func TestRates(t *testing.T) {
	bg := context.Background()
	read := func(size int) func(*block.Node) error {
		return func(n *block.Node) error { return n.ReadAt(bg, make([]byte, size), 0) }
	}
	write := func(size int) func(*block.Node) error {
		return func(n *block.Node) error { return n.WriteAt(bg, make([]byte, size), 0, 0) }
	}
	zero := func(n *block.Node) error { return n.WriteZeroes(bg, 0, mib, block.MayUnmap) }
	trim := func(n *block.Node) error { return n.Discard(bg, 0, mib) }
	flush := func(n *block.Node) error { return n.Flush(bg) }
	per := Limit{Average: mib}
	for _, c := range []struct {
		name     string
		l        Limits
		requests []func(*block.Node) error
		want     []int64
	}{
		{"bytes: the first passes, a tenth of a second is free", Limits{BPSTotal: per},
			[]func(*block.Node) error{read(mib), write(mib), read(mib)}, []int64{0, 900, 1900}},
		{"directions of their own", Limits{BPSRead: per},
			[]func(*block.Node) error{read(mib), write(mib), write(mib), read(mib)}, []int64{0, 0, 0, 900}},
		{"zeroes count in full, discards and flushes are free", Limits{BPSWrite: per},
			[]func(*block.Node) error{zero, trim, flush, trim, zero, trim, read(mib)}, []int64{0, 0, 0, 0, 900, 900, 900}},
		{"operations", Limits{IOPSTotal: Limit{Average: 10}},
			[]func(*block.Node) error{read(1), read(1), read(1), write(1)}, []int64{0, 0, 100, 200}},
		{"large operations count more often", Limits{IOPSTotal: Limit{Average: 10}, IOPSSize: mib / 2},
			[]func(*block.Node) error{read(mib), read(1), read(4 * mib), read(1)}, []int64{0, 100, 200, 1000}},
		{"a burst fills the bucket of one second", Limits{BPSTotal: Limit{Average: mib, Max: 4 * mib}},
			[]func(*block.Node) error{read(mib), read(mib), read(mib), read(2 * mib), read(mib)}, []int64{0, 0, 0, 0, 1000}},
		{"a long burst keeps its own rate", Limits{BPSTotal: Limit{Average: mib, Max: 10 * mib, MaxLength: 3}},
			[]func(*block.Node) error{read(10 * mib), read(10 * mib), read(10 * mib), read(10 * mib), read(1)},
			[]int64{0, 900, 1900, 2900, 10000}},
		{"no limits", Limits{}, []func(*block.Node) error{read(mib), zero, write(mib)}, []int64{0, 0, 0}},
	} {
		if got := run(t, c.l, c.requests...); !slices.Equal(got, c.want) {
			t.Errorf("%s: ended at %v ms, want %v", c.name, got, c.want)
		}
	}
}

func TestNodesOfAGroupAreServedInTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := group(t, Limits{BPSTotal: Limit{Average: mib}})
		var nodes []*block.Node
		for range 3 {
			nodes = append(nodes, node(t, g, blocktest.NewMem(blocktest.MemOptions{Size: mib})))
		}
		var mu sync.Mutex
		var order []string
		var wg sync.WaitGroup
		for i := range 9 {
			wg.Go(func() {
				if err := nodes[i%3].ReadAt(t.Context(), make([]byte, mib), 0); err != nil {
					t.Error(err)
				}
				mu.Lock()
				defer mu.Unlock()
				order = append(order, fmt.Sprint(i))
			})
			synctest.Wait() // each is in the line before the next comes
		}
		start := time.Now()
		wg.Wait()
		if got := fmt.Sprint(order); got != "[0 1 2 3 4 5 6 7 8]" {
			t.Errorf("order %s", got)
		}
		if took := time.Since(start); took.Milliseconds() != 7900 {
			t.Errorf("took %v", took)
		}
	})
}

func TestAWaitEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := blocktest.NewMem(blocktest.MemOptions{Size: mib})
		n := node(t, group(t, Limits{BPSTotal: Limit{Average: mib}}), m)
		read := func(ctx context.Context) error { return n.ReadAt(ctx, make([]byte, mib), 0) }
		if err := read(t.Context()); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		first, cancelFirst := context.WithCancel(t.Context())
		second, cancelSecond := context.WithCancel(t.Context())
		results := make(chan error, 2)
		go func() { results <- read(first) }()
		synctest.Wait()
		go func() { results <- read(second) }()
		synctest.Wait()
		third := make(chan error)
		go func() { third <- read(t.Context()) }()
		synctest.Wait()
		cancelSecond() // in the middle of the line
		if err := <-results; !errors.Is(err, context.Canceled) {
			t.Errorf("the second: %v", err)
		}
		cancelFirst() // at its head
		if err := <-results; !errors.Is(err, context.Canceled) {
			t.Errorf("the first: %v", err)
		}
		if err := <-third; err != nil || time.Since(start).Milliseconds() != 900 {
			t.Errorf("the third ended after %v, %v", time.Since(start), err)
		}
		if reads, _ := m.Count(block.OpRead); reads != 2 {
			t.Errorf("%d reads reached the disk", reads)
		}
	})
}

func TestLimitsChangeUnderWaitingRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := group(t, Limits{BPSTotal: Limit{Average: 1}})
		n := node(t, g, blocktest.NewMem(blocktest.MemOptions{Size: mib}))
		var wg sync.WaitGroup
		start := time.Now()
		for range 4 {
			wg.Go(func() {
				if err := n.ReadAt(t.Context(), make([]byte, mib), 0); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		time.Sleep(time.Minute)
		if err := g.SetLimits(Limits{BPSTotal: Limit{Average: mib}}); err != nil {
			t.Fatal(err)
		}
		wg.Wait()
		if took := time.Since(start); took.Milliseconds() != 61_900 {
			t.Errorf("took %v", took)
		}
	})
}

// A drain does not wait for the rate: requests of the drained node go at once, wherever they stand, those of others stay.
func TestADrainLetsRequestsGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := group(t, Limits{BPSTotal: Limit{Average: 1024}})
		graph := block.NewGraph()
		var users []*block.Backend
		var nodes []*block.Node
		for _, name := range []string{"a", "b"} {
			below := blocktest.NewNode(t, graph, name, blocktest.NewMem(blocktest.MemOptions{Size: mib}), block.Options{})
			n := blocktest.NewFilter(t, graph, "t"+name, below, func(e *block.Edge) (block.Driver, error) { return Open(e, g), nil })
			nodes = append(nodes, below)
			users = append(users, blocktest.Attach(t, graph, n, "guest", block.PermConsistentRead, block.PermAll))
		}
		start := time.Now()
		ends := make(chan string, 5)
		read := func(ctx context.Context, i int) {
			err := users[i].ReadAt(ctx, make([]byte, 4096), 0)
			ends <- fmt.Sprintf("%c %v %d", "ab"[i], err == nil, time.Since(start).Milliseconds())
		}
		ctx, cancel := context.WithCancel(t.Context())
		for _, i := range []int{0, 0, 1, 0} { // the first passes, the others make a line
			go read(ctx, i)
			synctest.Wait()
		}
		<-ends
		blocktest.Change(t, graph, func(tx *block.Tx) error { return tx.Drain(t.Context(), nil, nodes[0]) })
		for range 2 {
			if got := <-ends; got != "a true 0" {
				t.Errorf("a request of the drained node: %s", got)
			}
		}
		synctest.Wait()
		if len(ends) > 0 {
			t.Errorf("%s went along", <-ends)
		}
		cancel()
		<-ends
		// It counts, and afterwards the limit is in force again.
		read(t.Context(), 0)
		if got := <-ends; got != "a true 11900" {
			t.Errorf("after the drain: %s", got)
		}
	})
}
