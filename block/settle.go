// SPDX-License-Identifier: Apache-2.0

package block

import "context"

// settleLeaving brings the images of removed nodes to rest, from the top down. The edges of such a node still lead to the nodes
// below, which keep their permissions until all are settled.
func (tx *Tx) settleLeaving(ctx context.Context) error {
	leaving := tx.leaving
	tx.leaving = nil
	for _, n := range leaving {
		tx.touch(n) // it lets go of its file
		if err := tx.settle(ctx, n, true); err != nil {
			return err
		}
	}
	return nil
}

// settleReopened brings images to rest that other drivers are to take over. Their bitmaps stay in memory, unless nobody may
// write to the image any more.
func (tx *Tx) settleReopened(ctx context.Context, list []Reopen) error {
	for _, n := range tx.topDown(reopened(list)) {
		for _, r := range list {
			if r.Node == n && r.Open != nil {
				if err := tx.settle(ctx, n, r.Options.ReadOnly); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func reopened(list []Reopen) []*Node {
	nodes := make([]*Node, len(list))
	for i, r := range list {
		nodes[i] = r.Node
	}
	return nodes
}

// settle brings the image of a drained node to rest, with its bitmaps if store says so.
func (tx *Tx) settle(ctx context.Context, n *Node, store bool) error {
	o := n.now()
	if o.options.ReadOnly {
		return nil
	}
	if store && n.inUse {
		if err := o.keeper.StoreBitmaps(ctx, n.keptBitmaps()); err != nil {
			return graphError(KindOf(err), "Node '%s': cannot store its persistent bitmaps: %w", n.name, err)
		}
		n.inUse = false
		tx.OnRollBack(func() { n.useAgain(ctx) })
	}
	if o.settler == nil {
		return nil
	}
	return n.wrap(OpFlush, 0, 0, o.settler.Settle(ctx))
}
