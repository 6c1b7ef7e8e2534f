// SPDX-License-Identifier: Apache-2.0

package block

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
)

func TestGateNests(t *testing.T) {
	var g Gate
	g.close()
	g.close()
	g.open()
	if g.TryEnter() || !g.Closed() {
		t.Fatal("one of two closings opened the gate")
	}
	g.open()
	if !g.TryEnter() || g.Closed() || g.InFlight() != 1 {
		t.Fatal("the gate did not open")
	}
	g.Leave()
	if g.InFlight() != 0 {
		t.Error("a request that left is counted")
	}
}

func TestGateLetsRequestsInWhenItOpens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g Gate
		g.close()
		g.close()
		var entered atomic.Int64
		for range 5 {
			go func() {
				if err := g.Enter(t.Context()); err != nil {
					t.Error(err)
				}
				entered.Add(1)
			}()
		}
		synctest.Wait()
		g.open()
		synctest.Wait()
		if entered.Load() != 0 || g.InFlight() != 0 {
			t.Fatal("a closed gate let a request in, or counts those that wait")
		}
		g.open()
		synctest.Wait()
		if entered.Load() != 5 || g.InFlight() != 5 {
			t.Errorf("%d entered, %d in flight", entered.Load(), g.InFlight())
		}
	})
}

func TestAParkedRequestEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g Gate
		g.close()
		gone := errors.New("the connection is gone")
		ctx, cancel := context.WithCancelCause(t.Context())
		result := make(chan error, 1)
		go func() { result <- g.Enter(ctx) }()
		synctest.Wait()
		cancel(gone)
		if err := <-result; KindOf(err) != KindShutdown || !errors.Is(err, gone) {
			t.Errorf("error %v", err)
		}
		if err := g.waitIdle(t.Context()); err != nil {
			t.Errorf("the parked request counts as in flight: %v", err)
		}
	})
}

func TestWaitIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g Gate
		for range 2 {
			if !g.TryEnter() {
				t.Fatal("an open gate is closed")
			}
		}
		g.close()
		idle := make(chan error, 3)
		for range 2 {
			go func() { idle <- g.waitIdle(t.Context()) }()
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := g.waitIdle(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("with an ended context: %v", err)
		}
		g.Leave()
		synctest.Wait()
		if len(idle) != 0 {
			t.Fatal("idle with a request in flight")
		}
		g.Leave()
		synctest.Wait()
		if len(idle) != 2 {
			t.Fatalf("%d of 2 know that the gate is idle", len(idle))
		}
	})
}

// Requests and drains at once: no request is inside while the gate is closed and idle.
func TestGateUnderLoad(t *testing.T) {
	var g Gate
	var inside, passed atomic.Int64
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for g.Enter(ctx) == nil {
				inside.Add(1)
				passed.Add(1)
				inside.Add(-1)
				g.Leave()
				if ctx.Err() != nil {
					return
				}
			}
		})
	}
	var drains sync.WaitGroup
	for range 2 {
		drains.Go(func() {
			for i := int64(0); i < 500; i++ {
				g.close()
				if err := g.waitIdle(ctx); err != nil {
					t.Error(err)
				}
				if n := inside.Load(); n != 0 {
					t.Errorf("%d requests inside a drained gate", n)
				}
				g.open()
			}
		})
	}
	drains.Wait()
	cancel()
	wg.Wait()
	if passed.Load() == 0 {
		t.Error("nothing passed")
	}
}

func TestEnterDoesNotAllocate(t *testing.T) {
	var g Gate
	ctx := context.Background()
	if n := testing.AllocsPerRun(100, func() {
		if g.Enter(ctx) == nil {
			g.Leave()
		}
	}); n > 0 {
		t.Errorf("%v allocations", n)
	}
}
