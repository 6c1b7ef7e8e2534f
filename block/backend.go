// SPDX-License-Identifier: Apache-2.0

package block

import "context"

// Backend is the handle through which a user outside the graph, an export or a job, uses a node. Its requests pass a
// gate, which a drain closes. A backend follows its node: when the node is replaced, the backend uses the new one.
type Backend struct {
	Edge
	name string // how errors call the user, such as "export 'e'"
	gate Gate
}

// Name is how errors call the user of the backend.
func (b *Backend) Name() string { return b.name }

// Gate is the gate of the backend. A user that needs several requests to be one in the eyes of a drain enters it itself
// and sends them through the embedded Edge, which has no gate.
func (b *Backend) Gate() *Gate { return &b.gate }

// ReadAt is [Edge.ReadAt] behind the gate.
func (b *Backend) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := b.gate.Enter(ctx); err != nil {
		return err
	}
	defer b.gate.Leave()
	return b.Edge.ReadAt(ctx, p, off)
}

// WriteAt is [Edge.WriteAt] behind the gate.
func (b *Backend) WriteAt(ctx context.Context, p []byte, off int64, flags Flags) error {
	if err := b.gate.Enter(ctx); err != nil {
		return err
	}
	defer b.gate.Leave()
	return b.Edge.WriteAt(ctx, p, off, flags)
}

// WriteZeroes is [Edge.WriteZeroes] behind the gate.
func (b *Backend) WriteZeroes(ctx context.Context, off, n int64, flags Flags) error {
	if err := b.gate.Enter(ctx); err != nil {
		return err
	}
	defer b.gate.Leave()
	return b.Edge.WriteZeroes(ctx, off, n, flags)
}

// Discard is [Edge.Discard] behind the gate.
func (b *Backend) Discard(ctx context.Context, off, n int64) error {
	if err := b.gate.Enter(ctx); err != nil {
		return err
	}
	defer b.gate.Leave()
	return b.Edge.Discard(ctx, off, n)
}

// Flush is [Edge.Flush] behind the gate.
func (b *Backend) Flush(ctx context.Context) error {
	if err := b.gate.Enter(ctx); err != nil {
		return err
	}
	defer b.gate.Leave()
	return b.Edge.Flush(ctx)
}

// BlockStatus is [Edge.BlockStatus] behind the gate.
func (b *Backend) BlockStatus(ctx context.Context, off, n int64) (Extent, error) {
	if err := b.gate.Enter(ctx); err != nil {
		return Extent{}, err
	}
	defer b.gate.Leave()
	return b.Edge.BlockStatus(ctx, off, n)
}
