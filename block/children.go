// SPDX-License-Identifier: Apache-2.0

package block

import "slices"

// childBacking is the role of a node that answers for what the layer above it says nothing about. It is the only child that
// can come and go while the node above is open.
const childBacking = "backing"

// newEdge makes an edge that is not linked yet.
func newEdge(parent *Node, name string, below *Node) *Edge {
	e := &Edge{name: name, parent: parent, share: PermAll}
	e.node.Store(below)
	return e
}

// edges are all edges to the nodes below.
func (n *Node) edges() []*Edge { return *n.children.Load() }

// Unfiltered is the node whose disk n shows: n itself, or what filters stand on.
func (n *Node) Unfiltered() *Node {
	for n.filter && len(n.edges()) > 0 {
		n = n.edges()[0].Node()
	}
	return n
}

// Backing is the node whose content shows through where the layer that n shows has nothing of its own; nil if there is none.
// Filters over that node are not left out.
func (n *Node) Backing() *Node { return n.Unfiltered().child(childBacking) }

// Below says whether n stands below other, at any depth and in any role, or is the same node.
func (n *Node) Below(other *Node) bool {
	return n == other || slices.ContainsFunc(other.edges(), func(e *Edge) bool { return n.Below(e.Node()) })
}

// SetChild makes the child of n in a role lead to another node, or for nil to none. n and to are drained. Only a backing child
// can be put where none was or taken away, and only if the driver is a [BackingSetter]. A node that nobody uses any more after
// this, and that is not the operator's, is closed.
func (tx *Tx) SetChild(n *Node, role string, to *Node) error {
	from, err := tx.setChild(n, role, to)
	if err != nil || from == nil || from.monitor || len(from.parents) > 0 {
		return err
	}
	return tx.RemoveNode(from)
}

// setChild is SetChild that closes nothing and returns the node that the child led to; nil if there was none or it stays.
func (tx *Tx) setChild(n *Node, role string, to *Node) (from *Node, err error) {
	at := slices.IndexFunc(n.edges(), func(e *Edge) bool { return e.name == role })
	switch {
	case at < 0 && to == nil:
		return nil, nil
	case at < 0:
		return nil, tx.addBacking(n, role, to)
	}
	e := n.edges()[at]
	from = e.Node()
	switch {
	case from == to:
		return nil, nil
	case to == nil:
		err = tx.dropBacking(n, at)
	default:
		err = tx.repoint(e, to)
	}
	tx.touch(n)
	return from, err
}

func (tx *Tx) addBacking(n *Node, role string, to *Node) error {
	setter, ok := n.Driver().(BackingSetter)
	switch {
	case !ok || role != childBacking:
		return graphError(KindNotSupported, "Node '%s' (driver %s) has no '%s' child and cannot get one", n.name, n.driverName, role)
	case n.Below(to):
		return cycle(n, role, to)
	}
	e := newEdge(n, role, to)
	tx.setEdges(n, append(slices.Clone(n.edges()), e))
	tx.link(e)
	setter.SetBacking(e)
	tx.OnRollBack(func() { setter.SetBacking(nil) })
	tx.touch(n)
	return nil
}

func (tx *Tx) dropBacking(n *Node, at int) error {
	e := n.edges()[at]
	setter, ok := n.Driver().(BackingSetter)
	if !ok || e.name != childBacking {
		return graphError(KindNotSupported, "Node '%s' (driver %s) cannot do without its '%s' child", n.name, n.driverName, e.name)
	}
	setter.SetBacking(nil)
	tx.OnRollBack(func() { setter.SetBacking(e) })
	tx.unlink(e)
	tx.setEdges(n, slices.Delete(slices.Clone(n.edges()), at, at+1))
	return nil
}

func (tx *Tx) setEdges(n *Node, edges []*Edge) {
	old := n.children.Swap(&edges)
	tx.OnRollBack(func() { n.children.Store(old) })
}

func cycle(n *Node, role string, to *Node) error {
	return graphError(KindInvalid, "Making '%s' a '%s' child of '%s' would create a cycle", to.name, role, n.name)
}
