// SPDX-License-Identifier: Apache-2.0

package fault

import (
	"context"
	"fmt"

	"github.com/blkmirror/blkmirror/block"
)

// Options describe a node.
type Options struct {
	Rules       []Rule
	States      []SetState
	Align       int64 // request alignment, a power of two; 0 for that of the image
	MaxTransfer int64 // bytes, 0 for no limit
}

// Fault is the driver of a blkdebug node.
type Fault struct {
	*block.Edge
	options Options
	rules   *rules
}

var (
	_ block.Driver         = (*Fault)(nil)
	_ block.ZeroWriter     = (*Fault)(nil)
	_ block.ZeroUnmapper   = (*Fault)(nil)
	_ block.Discarder      = (*Fault)(nil)
	_ block.StatusReporter = (*Fault)(nil)
	_ block.Resizer        = (*Fault)(nil)
	_ block.Limiter        = (*Fault)(nil)
	_ block.EventListener  = (*Fault)(nil)
)

// Open puts rules on the node that image leads to.
func Open(image *block.Edge, o Options) (*Fault, error) {
	if o.Align&(o.Align-1) != 0 || o.Align < 0 || o.Align > 1<<30 {
		return nil, fmt.Errorf("Cannot meet constraints with align %d", o.Align)
	}
	if o.MaxTransfer < 0 || o.Align > 0 && o.MaxTransfer%o.Align != 0 {
		return nil, fmt.Errorf("Cannot meet constraints with max-transfer %d", o.MaxTransfer)
	}
	return &Fault{Edge: image, options: o, rules: newRules(o.Rules, o.States)}, nil
}

// Event tells the rules what happens to a request, here or in the nodes above.
func (f *Fault) Event(name string) { f.rules.event(name) }

// Limits are those that the options pretend.
func (f *Fault) Limits() block.Limits {
	return block.Limits{RequestAlign: f.options.Align, MaxTransfer: f.options.MaxTransfer,
		Granularity: f.Node().Limits().Granularity}
}

// inside is how much of n bytes at off lies on the image: what the node above pads to a pretended alignment may reach beyond.
func (f *Fault) inside(off, n int64) int64 { return max(min(n, f.Size()-off), 0) }

// CanZeroUnmap says whether the image can.
func (f *Fault) CanZeroUnmap() bool { return f.Node().CanZeroUnmap() }

// ReadAt reads unless a rule is against it.
func (f *Fault) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := f.rules.meet(ctx, Read, off, int64(len(p))); err != nil {
		return err
	}
	inside := f.inside(off, int64(len(p)))
	clear(p[inside:])
	return f.Edge.ReadAt(ctx, p[:inside], off)
}

// WriteAt writes unless a rule is against it.
func (f *Fault) WriteAt(ctx context.Context, p []byte, off int64, flags block.Flags) error {
	if err := f.rules.meet(ctx, Write, off, int64(len(p))); err != nil {
		return err
	}
	return f.Edge.WriteAt(ctx, p[:f.inside(off, int64(len(p)))], off, flags)
}

// WriteZeroes writes zeroes unless a rule is against it.
func (f *Fault) WriteZeroes(ctx context.Context, off, n int64, flags block.Flags) error {
	if err := f.rules.meet(ctx, WriteZeroes, off, n); err != nil {
		return err
	}
	return f.Edge.WriteZeroes(ctx, off, f.inside(off, n), flags)
}

// Discard discards unless a rule is against it.
func (f *Fault) Discard(ctx context.Context, off, n int64) error {
	if err := f.rules.meet(ctx, Discard, off, n); err != nil {
		return err
	}
	return f.Edge.Discard(ctx, off, n)
}

// Flush flushes unless a rule is against it.
func (f *Fault) Flush(ctx context.Context) error {
	if err := f.rules.meet(ctx, Flush, 0, 0); err != nil {
		return err
	}
	return f.Edge.Flush(ctx)
}

// BlockStatus asks the image unless a rule is against it.
func (f *Fault) BlockStatus(ctx context.Context, off, n int64) (block.Extent, error) {
	if err := f.rules.meet(ctx, BlockStatus, off, n); err != nil {
		return block.Extent{}, err
	}
	return f.Edge.BlockStatus(ctx, off, n)
}

// Close has nothing to release: the image has an owner.
func (f *Fault) Close() error { return nil }
