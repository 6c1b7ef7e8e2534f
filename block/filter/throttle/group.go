// SPDX-License-Identifier: Apache-2.0

package throttle

import (
	"context"
	"slices"
	"sync"
	"time"
)

type direction uint8

const (
	read direction = iota
	write
	directions
)

// Group is a set of limits that any number of nodes share.
type Group struct {
	name string
	mu   struct {
		sync.Mutex
		limits  Limits
		buckets [numBuckets]bucket
		leaked  time.Time             // until when the buckets have leaked
		lines   [directions][]*waiter // the first waits for the buckets, the others for their turn
		changed chan struct{}         // closed when the limits change; nil while nobody waits for that
	}
}

// Which bucket is which. Total counts for both directions.
const (
	bpsRead = iota
	bpsWrite
	bpsTotal
	iopsRead
	iopsWrite
	iopsTotal
	numBuckets
)

// bucketsOf are the buckets that a request of a direction passes.
var bucketsOf = [directions]struct{ bytes, operations [2]int }{
	read:  {[2]int{bpsTotal, bpsRead}, [2]int{iopsTotal, iopsRead}},
	write: {[2]int{bpsTotal, bpsWrite}, [2]int{iopsTotal, iopsWrite}},
}

// waiter is a request in a line.
type waiter struct {
	first chan struct{} // closed when nobody is before it any more
}

// NewGroup makes a group.
func NewGroup(name string, limits Limits) (*Group, error) {
	if err := limits.Check(); err != nil {
		return nil, err
	}
	g := &Group{name: name}
	g.setLocked(limits)
	return g, nil
}

// Name is the id of the group.
func (g *Group) Name() string { return g.name }

// Limits are those in force.
func (g *Group) Limits() Limits {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.mu.limits
}

// SetLimits changes the limits; requests that wait now do so under the new ones. What was counted before is forgotten.
func (g *Group) SetLimits(limits Limits) error {
	if err := limits.Check(); err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.setLocked(limits)
	if g.mu.changed != nil {
		close(g.mu.changed)
		g.mu.changed = nil
	}
	return nil
}

func (g *Group) setLocked(l Limits) {
	g.mu.limits = l
	g.mu.buckets = [numBuckets]bucket{
		bpsRead: {limit: l.BPSRead}, bpsWrite: {limit: l.BPSWrite}, bpsTotal: {limit: l.BPSTotal},
		iopsRead: {limit: l.IOPSRead}, iopsWrite: {limit: l.IOPSWrite}, iopsTotal: {limit: l.IOPSTotal},
	}
	g.mu.leaked = time.Now()
}

// pass waits until a request of n bytes may go, and counts it. When free is closed it may go at once. Only the end of ctx
// makes it fail.
func (g *Group) pass(ctx context.Context, free <-chan struct{}, d direction, n int64) error {
	g.mu.Lock()
	if len(g.mu.lines[d]) == 0 && g.waitLocked(d) == 0 {
		g.countLocked(d, n)
		g.mu.Unlock()
		return nil
	}
	w := &waiter{first: make(chan struct{})}
	g.mu.lines[d] = append(g.mu.lines[d], w)
	if len(g.mu.lines[d]) == 1 {
		close(w.first)
	}
	g.mu.Unlock()
	err := g.stand(ctx, free, d, w)
	g.mu.Lock()
	defer g.mu.Unlock()
	if err == nil {
		g.countLocked(d, n)
	}
	g.leaveLocked(d, w)
	return err
}

// stand waits in line d until w is the first there and the buckets are not overfull, or free is closed.
func (g *Group) stand(ctx context.Context, free <-chan struct{}, d direction, w *waiter) error {
	select {
	case <-w.first:
	case <-free:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	for {
		g.mu.Lock()
		wait := g.waitLocked(d)
		if wait == 0 {
			g.mu.Unlock()
			return nil
		}
		if g.mu.changed == nil {
			g.mu.changed = make(chan struct{})
		}
		changed := g.mu.changed
		g.mu.Unlock()
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-changed:
		case <-free:
			timer.Stop()
			return nil
		case <-ctx.Done():
			timer.Stop()
			return context.Cause(ctx)
		}
		timer.Stop()
	}
}

// waitLocked is how long the buckets of a direction remain overfull.
func (g *Group) waitLocked(d direction) time.Duration {
	now := time.Now()
	if passed := now.Sub(g.mu.leaked); passed > 0 {
		for i := range g.mu.buckets {
			g.mu.buckets[i].leak(passed.Seconds())
		}
		g.mu.leaked = now
	}
	var longest time.Duration
	of := &bucketsOf[d]
	for _, i := range of.bytes {
		longest = max(longest, g.mu.buckets[i].wait())
	}
	for _, i := range of.operations {
		longest = max(longest, g.mu.buckets[i].wait())
	}
	return longest
}

func (g *Group) countLocked(d direction, n int64) {
	operations := 1.0
	if size := g.mu.limits.IOPSSize; size > 0 && n > size {
		operations = float64(n) / float64(size)
	}
	of := &bucketsOf[d]
	for _, i := range of.bytes {
		g.mu.buckets[i].pour(float64(n))
	}
	for _, i := range of.operations {
		g.mu.buckets[i].pour(operations)
	}
}

// leaveLocked takes a request out of its line. If it was the first, the next one is now.
func (g *Group) leaveLocked(d direction, w *waiter) {
	at := slices.Index(g.mu.lines[d], w)
	g.mu.lines[d] = slices.Delete(g.mu.lines[d], at, at+1)
	if at == 0 && len(g.mu.lines[d]) > 0 {
		close(g.mu.lines[d][0].first)
	}
}
