// SPDX-License-Identifier: Apache-2.0

package throttle

import (
	"context"
	"sync"

	"github.com/blkmirror/blkmirror/block"
)

// Throttle is the driver of a node whose requests a group slows down.
type Throttle struct {
	*block.Edge
	group *Group
	mu    struct {
		sync.Mutex
		drains int
		free   chan struct{} // closed while there are drains
	}
}

// Open puts a node under the limits of a group.
func Open(file *block.Edge, group *Group) *Throttle {
	t := &Throttle{Edge: file, group: group}
	t.mu.free = make(chan struct{})
	return t
}

// BeginDrain lets the requests of this node go, and all that come until EndDrain.
func (t *Throttle) BeginDrain() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.mu.drains++; t.mu.drains == 1 {
		close(t.mu.free)
	}
}

// EndDrain takes back one BeginDrain.
func (t *Throttle) EndDrain() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.mu.drains--; t.mu.drains == 0 {
		t.mu.free = make(chan struct{})
	}
}

func (t *Throttle) pass(ctx context.Context, d direction, n int64) error {
	t.mu.Lock()
	free := t.mu.free
	t.mu.Unlock()
	return t.group.pass(ctx, free, d, n)
}

// Group is the group that the node belongs to.
func (t *Throttle) Group() *Group { return t.group }

// ReadAt reads when the group lets it.
func (t *Throttle) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := t.pass(ctx, read, int64(len(p))); err != nil {
		return err
	}
	return t.Edge.ReadAt(ctx, p, off)
}

// WriteAt writes when the group lets it.
func (t *Throttle) WriteAt(ctx context.Context, p []byte, off int64, flags block.Flags) error {
	if err := t.pass(ctx, write, int64(len(p))); err != nil {
		return err
	}
	return t.Edge.WriteAt(ctx, p, off, flags)
}

// WriteZeroes counts as if the zeroes were sent.
func (t *Throttle) WriteZeroes(ctx context.Context, off, n int64, flags block.Flags) error {
	if err := t.pass(ctx, write, n); err != nil {
		return err
	}
	return t.Edge.WriteZeroes(ctx, off, n, flags)
}

// CanZeroUnmap says whether the node below can.
func (t *Throttle) CanZeroUnmap() bool { return t.Node().CanZeroUnmap() }

// Limits passes on the preferred unit of change; the node below pads for itself.
func (t *Throttle) Limits() block.Limits {
	return block.Limits{Granularity: t.Node().Limits().Granularity}
}

// Close has nothing to release: node and group have owners.
func (t *Throttle) Close() error { return nil }

var (
	_ block.Driver         = (*Throttle)(nil)
	_ block.ZeroWriter     = (*Throttle)(nil)
	_ block.ZeroUnmapper   = (*Throttle)(nil)
	_ block.Discarder      = (*Throttle)(nil)
	_ block.StatusReporter = (*Throttle)(nil)
	_ block.Resizer        = (*Throttle)(nil)
	_ block.Limiter        = (*Throttle)(nil)
	_ block.Delayer        = (*Throttle)(nil)
)
