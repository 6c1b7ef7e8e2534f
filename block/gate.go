// SPDX-License-Identifier: Apache-2.0

package block

import (
	"context"
	"sync"
	"sync/atomic"
)

// Gate stops the requests of one user of the graph while the graph changes. It counts the requests that passed and how
// often it was closed; it is open while that count is zero. The zero value is an open gate.
type Gate struct {
	// state holds the number of closings above bit 32 and the number of requests in flight below it, so that passing an
	// open gate is one compare-and-swap.
	state atomic.Int64
	mu    struct {
		sync.Mutex
		opened chan struct{} // closed when the gate opens; nil while nobody has to wait for that
		idle   chan struct{} // closed when the last request in flight ends; nil while nobody waits for that
	}
}

const gateClosed = 1 << 32

// Enter passes the gate, waiting while it is closed. A waiting request is not in flight; it gives up when ctx ends.
// Every successful Enter is followed by one Leave.
func (g *Gate) Enter(ctx context.Context) error {
	for {
		if g.TryEnter() {
			return nil
		}
		opened := g.whenOpen()
		if opened == nil {
			continue
		}
		select {
		case <-opened:
		case <-ctx.Done():
			return &Error{Kind: KindShutdown, Op: OpGraph, Err: context.Cause(ctx)}
		}
	}
}

// TryEnter passes the gate if it is open.
func (g *Gate) TryEnter() bool {
	for {
		s := g.state.Load()
		if s >= gateClosed {
			return false
		}
		if g.state.CompareAndSwap(s, s+1) {
			return true
		}
	}
}

// whenOpen returns a channel that is closed when the gate opens, nil if it is open.
func (g *Gate) whenOpen() chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.state.Load() < gateClosed {
		return nil
	}
	if g.mu.opened == nil {
		g.mu.opened = make(chan struct{})
	}
	return g.mu.opened
}

// Leave ends a request that had entered.
func (g *Gate) Leave() {
	s := g.state.Add(-1)
	if s >= gateClosed && s&(gateClosed-1) == 0 {
		g.mu.Lock()
		if g.mu.idle != nil && g.state.Load()&(gateClosed-1) == 0 {
			close(g.mu.idle)
			g.mu.idle = nil
		}
		g.mu.Unlock()
	}
}

// close keeps new requests out until as many calls of open have followed.
func (g *Gate) close() { g.state.Add(gateClosed) }

// open takes back one close.
func (g *Gate) open() {
	if g.state.Add(-gateClosed) >= gateClosed {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.mu.opened != nil && g.state.Load() < gateClosed {
		close(g.mu.opened)
		g.mu.opened = nil
	}
}

// waitIdle waits until no request is in flight. The gate is closed.
func (g *Gate) waitIdle(ctx context.Context) error {
	for {
		g.mu.Lock()
		if g.state.Load()&(gateClosed-1) == 0 {
			g.mu.Unlock()
			return nil
		}
		if g.mu.idle == nil {
			g.mu.idle = make(chan struct{})
		}
		idle := g.mu.idle
		g.mu.Unlock()
		select {
		case <-idle:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// Closed says whether requests are being kept out, and InFlight how many are inside.
func (g *Gate) Closed() bool { return g.state.Load() >= gateClosed }

// InFlight is the number of requests that entered and did not leave yet.
func (g *Gate) InFlight() int { return int(g.state.Load() & (gateClosed - 1)) }
