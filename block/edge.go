// SPDX-License-Identifier: Apache-2.0

package block

import (
	"context"
	"fmt"
	"sync/atomic"
)

// Edge is one use of a node: by a node above it, whose driver sends its requests through the edge, or by a backend. The
// node below may be exchanged while everything above is drained.
type Edge struct {
	name   string // role of the child: "file", "backing", "target"; "root" for a backend
	hidden bool   // not a child in the eyes of an operator
	node   atomic.Pointer[Node]

	// Exactly one of the two is set, for good.
	parent  *Node
	backend *Backend

	// Only read and changed inside Graph.Change.
	need, share Perm
}

// Name is the role of the child.
func (e *Edge) Name() string { return e.name }

// Node is the node that the edge leads to at present.
func (e *Edge) Node() *Node { return e.node.Load() }

func (e *Edge) userName() string {
	switch {
	case e.backend != nil:
		return e.backend.name
	case e.parent.owner != "":
		return fmt.Sprintf("%s (as its %s)", e.parent.owner, e.name)
	}
	return fmt.Sprintf("node '%s' (as its '%s' child)", e.parent.name, e.name)
}

// Size is the length of the node below in bytes.
func (e *Edge) Size() int64 { return e.Node().Size() }

// ReadAt fills p from offset off of the node below.
func (e *Edge) ReadAt(ctx context.Context, p []byte, off int64) error {
	return e.Node().ReadAt(ctx, p, off)
}

// WriteAt writes p at offset off of the node below. p must be stable until the call returns.
func (e *Edge) WriteAt(ctx context.Context, p []byte, off int64, flags Flags) error {
	return e.Node().WriteAt(ctx, p, off, flags)
}

// WriteZeroes makes n bytes at offset off of the node below read as zeroes.
func (e *Edge) WriteZeroes(ctx context.Context, off, n int64, flags Flags) error {
	return e.Node().WriteZeroes(ctx, off, n, flags)
}

// Discard tells the node below that n bytes at offset off are not needed any more.
func (e *Edge) Discard(ctx context.Context, off, n int64) error { return e.Node().Discard(ctx, off, n) }

// Flush makes all writes that returned durable.
func (e *Edge) Flush(ctx context.Context) error { return e.Node().Flush(ctx) }

// BlockStatus asks the node below about the extent at offset off.
func (e *Edge) BlockStatus(ctx context.Context, off, n int64) (Extent, error) {
	return e.Node().BlockStatus(ctx, off, n)
}

// Event tells the node below what its user is about to do, in the words of blkdebug, such as "read_aio".
func (e *Edge) Event(name string) { e.Node().event(name) }

// Resize changes the length of the node below, for a driver whose own Resize was called.
func (e *Edge) Resize(ctx context.Context, size int64) error { return e.Node().resize(ctx, size) }

// Space asks the node below where its image takes space on the host.
func (e *Edge) Space(ctx context.Context, off, n int64) (length int64, taken bool, err error) {
	return e.Node().Space(ctx, off, n)
}
