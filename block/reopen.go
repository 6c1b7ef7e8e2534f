// SPDX-License-Identifier: Apache-2.0

package block

import (
	"context"
	"slices"
)

// Reopen says what a node is to become. It keeps its name, users, bitmaps and counters.
type Reopen struct {
	Node    *Node
	Options Options
	// Children are the nodes below from now on, by their roles; nil to keep them. Only a backing node can come and go.
	Children []Child
	// Open makes the new driver; nil to keep the old one. The edges are those to the nodes below, in any order.
	Open func(edges []*Edge) (Driver, error)
	// Content says that the disk may show something else afterwards even with the same children.
	Content bool
}

// Reopen changes options, drivers and children of nodes, of all or of none. It drains them. It must be the last step of the
// change: what it does to the length of disks is not taken back when a later one fails.
func (tx *Tx) Reopen(ctx context.Context, list []Reopen) error {
	for _, r := range list {
		if err := tx.mayReopen(&r); err != nil {
			return err
		}
		drain := []*Node{r.Node}
		for _, c := range r.Children {
			drain = append(drain, c.Node)
		}
		if err := tx.Drain(ctx, nil, drain...); err != nil {
			return err
		}
	}
	if err := tx.settleReopened(ctx, list); err != nil {
		return err
	}
	if err := tx.repointAll(list); err != nil {
		return err
	}
	nodes := reopened(list)
	for _, n := range slices.Backward(tx.topDown(nodes)) { // drivers look at the nodes below when they open
		if i := slices.Index(nodes, n); i >= 0 {
			if err := tx.exchange(ctx, &list[i]); err != nil {
				return err
			}
			if err := tx.checkSize(n); err != nil {
				return err
			}
		}
	}
	if err := tx.applyPermissions(ctx); err != nil {
		return err
	}
	for _, n := range nodes {
		n.measure()
		tx.g.measureAbove(n)
	}
	return nil
}

// repointAll gives the nodes their new children, and closes old ones that nobody uses any more.
func (tx *Tx) repointAll(list []Reopen) error {
	var left []*Node
	for _, r := range list {
		for role, to := range r.changes() {
			from, err := tx.setChild(r.Node, role, to)
			if err != nil {
				return err
			}
			if from != nil {
				left = append(left, from)
			}
		}
	}
	for _, n := range left {
		if tx.listed(n) && !n.monitor && len(n.parents) == 0 {
			if err := tx.RemoveNode(n); err != nil {
				return err
			}
		}
	}
	return nil
}

// changes are the roles of children that change, with the new ones.
func (r *Reopen) changes() map[string]*Node {
	changes := map[string]*Node{}
	if r.Children == nil {
		return changes
	}
	for _, e := range r.Node.edges() {
		if !e.hidden {
			changes[e.name] = nil
		}
	}
	for _, c := range r.Children {
		changes[c.Name] = c.Node
	}
	for _, e := range r.Node.edges() {
		if changes[e.name] == e.Node() {
			delete(changes, e.name)
		}
	}
	return changes
}

// mayReopen is the error for what would harm a job on the node or above it.
func (tx *Tx) mayReopen(r *Reopen) error {
	n := r.Node
	if r.Options.ReadOnly != n.Options().ReadOnly {
		if err := n.Busy(); err != nil {
			return err
		}
	}
	if !r.Content && len(r.changes()) == 0 {
		return nil
	}
	return tx.g.busyAbove(n)
}

// busyAbove is [Node.Busy] of n and all nodes above it.
func (g *Graph) busyAbove(n *Node) error {
	if err := n.Busy(); err != nil {
		return err
	}
	for _, e := range n.parents {
		if e.parent != nil {
			if err := g.busyAbove(e.parent); err != nil {
				return err
			}
		}
	}
	return nil
}

// repoint makes e, a child of a node that is drained, lead to another node.
func (tx *Tx) repoint(e *Edge, to *Node) error {
	if e.parent.Below(to) {
		return cycle(e.parent, e.name, to)
	}
	from := e.Node()
	tx.unlink(e)
	e.node.Store(to)
	tx.OnRollBack(func() { e.node.Store(from) })
	tx.link(e)
	return nil
}

// exchange gives a node new options and, if there is one, a new driver. An old one with an image of its own makes durable what
// it wrote, since the new one may not be told of an error, and lets go of the image.
func (tx *Tx) exchange(ctx context.Context, r *Reopen) error {
	n := r.Node
	old := n.now()
	tx.touch(n)
	set := func(o *opened) {
		n.state.Store(o)
		tx.OnRollBack(func() { n.state.Store(old) })
	}
	if r.Open == nil {
		kept := *old
		kept.options = r.Options
		set(&kept)
		return nil
	}
	if len(n.edges()) == 0 && !old.options.ReadOnly {
		if err := old.driver.Flush(ctx); err != nil {
			return n.wrap(OpFlush, 0, 0, err)
		}
	}
	driver, err := r.Open(n.edges())
	if err != nil {
		return openError(n.name, err)
	}
	tx.OnRollBack(func() { _ = driver.Close() })
	if old.options.ReadOnly && !r.Options.ReadOnly { // others may have written to the image
		if err := tx.reloadBitmaps(ctx, n, driver); err != nil {
			return err
		}
	}
	if old.holder != nil {
		if err := tx.hold(n, heldPerms{0, PermAll}); err != nil {
			return err
		}
	}
	set(newOpened(driver, r.Options))
	tx.OnCommit(func() error { return n.wrap(OpGraph, 0, 0, old.driver.Close()) })
	return nil
}

// checkSize takes note of the length that the disk of a node has now, if its users allow a change.
func (tx *Tx) checkSize(n *Node) error {
	size, old := n.Driver().Size(), n.Size()
	if size == old {
		return nil
	}
	for _, b := range tx.g.backendsAbove(n) {
		if b.share&PermResize == 0 {
			return graphError(KindPermission, "Cannot change the size of node '%s' from %d to %d bytes: %s does not allow that",
				n.name, old, size, b.name)
		}
	}
	if err := n.bitmapsFit(size); err != nil {
		return err
	}
	if err := tx.g.bitmapsFitAbove(n, size); err != nil {
		return err
	}
	n.size.Store(size)
	tx.OnRollBack(func() { n.size.Store(old) })
	return nil
}
