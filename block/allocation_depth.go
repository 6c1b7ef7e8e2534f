// SPDX-License-Identifier: Apache-2.0

package block

import "context"

// AllocationDepth tells which layer decides what the extent at offset off reads as, and how long the extent is, at least one
// byte and at most length: 1 the node's own disk, filters above it not counted, 2 its backing node, and so on; 0 none.
func (n *Node) AllocationDepth(ctx context.Context, off, length int64) (extent int64, depth int, err error) {
	extent, depth, _, err = n.decider(ctx, nil, off, length)
	return extent, depth, err
}

// AllocatedAbove says whether the extent at offset off is decided by n or a layer below it but above base, and how long the
// extent is; nil is below all layers. Where a layer in between is too short to have the extent, it reads as zeroes whatever
// base has there: that is decided above base, too.
func (n *Node) AllocatedAbove(ctx context.Context, base *Node, off, length int64) (extent int64, above bool, err error) {
	extent, depth, short, err := n.decider(ctx, base, off, length)
	return extent, depth > 0 || short && base != nil, err
}

// decider finds the layer above base that decides about an extent; 0 if none does. short says that the search ended at a layer
// that is too short.
func (n *Node) decider(ctx context.Context, base *Node, off, length int64) (extent int64, depth int, short bool, err error) {
	if base != nil {
		base = base.Unfiltered()
	}
	for depth, extent = 1, length; ; depth++ {
		if n = n.Unfiltered(); n == base {
			return extent, 0, false, nil
		}
		if off >= n.Size() { // a backing node may be shorter
			return extent, 0, true, nil
		}
		status, err := n.BlockStatus(ctx, off, min(extent, n.Size()-off))
		if err != nil {
			return 0, 0, false, err
		}
		extent = status.Len
		if status.Status&StatusAllocated != 0 {
			return extent, depth, false, nil
		}
		if n = n.Backing(); n == nil {
			return extent, 0, false, nil
		}
	}
}

// child is the node below by its role, nil if there is none.
func (n *Node) child(name string) *Node {
	for _, e := range n.edges() {
		if e.name == name && !e.hidden {
			return e.Node()
		}
	}
	return nil
}
