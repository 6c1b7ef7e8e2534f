// SPDX-License-Identifier: Apache-2.0

package block

import (
	"context"
	"slices"
)

// applyPermissions works out the permissions of all edges below the nodes whose users changed, refuses conflicts, and
// carries the result to image files. Before that, nodes that go are brought to rest, since they may have to write. A failure
// leaves undo steps behind for what was done.
func (tx *Tx) applyPermissions(ctx context.Context) error {
	if err := tx.settleLeaving(ctx); err != nil {
		return err
	}
	order := tx.topDown(tx.touched)
	for _, n := range order {
		if err := checkConflicts(n); err != nil {
			return err
		}
		need, share := cumulative(n)
		o := n.now()
		if o.options.ReadOnly && need&(PermWrite|PermResize) != 0 && !n.filter {
			return &Error{Kind: KindReadOnly, Op: OpGraph, Node: n.name, Err: errReadOnly}
		}
		for _, e := range n.edges() {
			childNeed, childShare := need, share
			if o.permit != nil {
				childNeed, childShare = o.permit.ChildPermissions(e.name, need, share)
			}
			if o.options.ForceShare {
				childShare = PermAll
			}
			tx.setEdge(e, childNeed, childShare)
		}
	}
	// Files let go first and take afterwards, so that a disk can pass from one node to another in one change.
	type target struct {
		n           *Node
		need, share Perm
	}
	var takes []target
	for _, n := range order {
		if n.now().holder == nil {
			continue
		}
		need, share := cumulative(n)
		old := n.held
		if common := (heldPerms{old.need & need, old.share | share}); common != old {
			if err := tx.hold(n, common); err != nil {
				return err
			}
		}
		takes = append(takes, target{n, need, share})
	}
	for _, t := range takes {
		if err := tx.hold(t.n, heldPerms{t.need, t.share}); err != nil {
			return err
		}
	}
	tx.touched = nil
	return tx.useBitmaps(ctx, order)
}

// ApplyPermissions puts in force, before the change ends, what its steps so far need and share.
func (tx *Tx) ApplyPermissions(ctx context.Context) error { return tx.applyPermissions(ctx) }

// heldPerms is what a driver was last told to hold outside the graph.
type heldPerms struct{ need, share Perm }

func (tx *Tx) hold(n *Node, want heldPerms) error {
	old := n.held
	if old == want {
		return nil
	}
	if err := n.now().holder.SetPermissions(want.need, want.share); err != nil {
		return n.wrap(OpGraph, 0, 0, err)
	}
	n.held = want
	tx.OnRollBack(func() {
		if n.now().holder.SetPermissions(old.need, old.share) == nil {
			n.held = old
		}
	})
	return nil
}

func (tx *Tx) setEdge(e *Edge, need, share Perm) {
	oldNeed, oldShare := e.need, e.share
	e.need, e.share = need, share
	tx.OnRollBack(func() { e.need, e.share = oldNeed, oldShare })
}

// cumulative is what the users of n need together and what all of them share.
func cumulative(n *Node) (need, share Perm) {
	share = PermAll
	for _, e := range n.parents {
		need |= e.need
		share &= e.share
	}
	return need, share
}

func checkConflicts(n *Node) error {
	for _, a := range n.parents {
		for _, b := range n.parents {
			if conflict := a.need &^ b.share; a != b && conflict != 0 {
				return graphError(KindPermission,
					"Permission conflict on node '%s': permissions '%s' are both required by %s and unshared by %s",
					n.name, conflict, a.userName(), b.userName())
			}
		}
	}
	return nil
}

// topDown lists the nodes and all below them, every node after the nodes above it.
func (tx *Tx) topDown(from []*Node) []*Node {
	var order []*Node
	seen := map[*Node]bool{}
	var visit func(n *Node)
	visit = func(n *Node) {
		if seen[n] {
			return
		}
		seen[n] = true
		for _, e := range n.edges() {
			visit(e.Node())
		}
		order = append(order, n)
	}
	for _, n := range from {
		visit(n)
	}
	slices.Reverse(order)
	return order
}

func (tx *Tx) listed(n *Node) bool {
	found, err := tx.g.Node(n.name)
	return err == nil && found == n
}

// Blocker keeps an operator from doing to a node what would disturb its user.
type Blocker struct{ reason string }

// Block puts a blocker on n, taken off by Unblock.
func (tx *Tx) Block(n *Node, reason string) *Blocker {
	b := &Blocker{reason}
	tx.g.mu.Lock()
	n.blockers = append(n.blockers, b)
	tx.g.mu.Unlock()
	tx.OnRollBack(func() { tx.Unblock(n, b) })
	return b
}

// Unblock takes a blocker off n.
func (tx *Tx) Unblock(n *Node, b *Blocker) {
	tx.g.mu.Lock()
	n.blockers = slices.DeleteFunc(n.blockers, func(other *Blocker) bool { return other == b })
	tx.g.mu.Unlock()
}

// Busy is the error for an operator's request that a blocker forbids; nil if there is none. Only inside Graph.Change.
func (n *Node) Busy() error {
	if len(n.blockers) == 0 {
		return nil
	}
	return graphError(KindBusy, "Node '%s' is busy: %s", n.name, n.blockers[0].reason)
}
