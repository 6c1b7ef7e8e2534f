// SPDX-License-Identifier: Apache-2.0

package block

import "context"

// AllocationDepth tells which layer decides what the extent at offset off reads as, and how long the extent is, at least one
// byte and at most length: 1 the node's own disk, filters above it not counted, 2 its backing node, and so on; 0 none.
func (n *Node) AllocationDepth(ctx context.Context, off, length int64) (extent int64, depth int, err error) {
	for depth, extent = 1, length; ; depth++ {
		n = n.Unfiltered()
		if off >= n.Size() { // a backing node may be shorter
			return extent, 0, nil
		}
		status, err := n.BlockStatus(ctx, off, min(extent, n.Size()-off))
		if err != nil {
			return 0, 0, err
		}
		extent = status.Len
		if status.Status&StatusAllocated != 0 {
			return extent, depth, nil
		}
		below := n.child(childBacking)
		if below == nil {
			return extent, 0, nil
		}
		n = below
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
