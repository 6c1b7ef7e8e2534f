// SPDX-License-Identifier: Apache-2.0

package block

import (
	"context"
	"errors"
	"slices"
)

// Tx is one change of the graph. It exists while the function given to [Graph.Change] runs.
type Tx struct {
	g       *Graph
	undo    []func()       // takes the steps back, last first
	done    []func() error // what can only follow when the change holds
	touched []*Node        // nodes whose users changed
	gates   []*Gate        // closed by this change
	drained []*Node
	leaving []*Node   // removed, and not settled yet
	using   []*Node   // whose stored bitmaps are to be marked as in use
	hurried []Delayer // drivers that were told of a drain
}

// Graph is the graph that changes.
func (tx *Tx) Graph() *Graph { return tx.g }

// OnRollBack has f called if the change fails, in reverse order of the calls.
func (tx *Tx) OnRollBack(f func()) { tx.undo = append(tx.undo, f) }

// OnCommit has f called when the change holds and its permissions are in force. The error of f is what Change returns,
// but the change stays.
func (tx *Tx) OnCommit(f func() error) { tx.done = append(tx.done, f) }

// Child is an edge to a node that is there.
type Child struct {
	Name   string
	Node   *Node
	Hidden bool // does not count as a child in queries
}

// NodeConfig describes a new node.
type NodeConfig struct {
	Name       string // "" for a generated one
	DriverName string
	Options    Options
	Filter     bool   // shows the disk of its first child, which users cannot get around from then on
	Implicit   bool   // a filter that the operator did not name
	Owner      string // how errors call whoever put the node there, such as a job; "" for the operator
	Monitor    bool   // belongs to the operator, not to the node above it
	Children   []Child
	// Open makes the driver. The edges are those to Children, in their order.
	Open func(edges []*Edge) (Driver, error)
}

// AddNode opens a node. The node is in nobody's use until the change ends but for the caller's.
func (tx *Tx) AddNode(c NodeConfig) (*Node, error) {
	n := &Node{name: c.Name, driverName: c.DriverName, filter: c.Filter, monitor: c.Monitor,
		implicit: c.Implicit || c.Name == "", owner: c.Owner}
	if c.Name != "" {
		if err := CheckNodeName(c.Name); err != nil {
			return nil, err
		}
		if _, err := tx.g.Node(c.Name); err == nil {
			return nil, graphError(KindExists, "Duplicate nodes with node-name='%s'", c.Name)
		}
	}
	edges := make([]*Edge, len(c.Children))
	for i, child := range c.Children {
		edges[i] = newEdge(n, child.Name, child.Node)
		edges[i].hidden = child.Hidden
	}
	n.children.Store(&edges)
	driver, err := c.Open(edges)
	if err != nil {
		return nil, openError(c.Name, err)
	}
	n.state.Store(newOpened(driver, c.Options))
	n.size.Store(driver.Size())
	n.held.share = PermAll // a driver starts without locks; a roll-back must not tell it otherwise
	tx.OnRollBack(func() { _ = driver.Close() })
	tx.g.mu.Lock()
	if n.name == "" {
		n.name = tx.g.generateNameLocked()
	}
	tx.g.mu.nodes[n.name] = n
	tx.g.mu.order = append(tx.g.mu.order, n)
	tx.g.mu.Unlock()
	tx.OnRollBack(func() { tx.unlist(n) })
	for _, e := range n.edges() {
		tx.link(e)
	}
	tx.touch(n) // a format may need something of its file before anybody uses it
	return n, nil
}

// openError gives what a driver says about its opening the node's name, unless it is an [Error] already.
func openError(name string, err error) error {
	var e *Error
	if errors.As(err, &e) {
		return err
	}
	return &Error{Kind: KindOf(err), Op: OpOpen, Node: name, Err: err}
}

// RemoveNode closes a node that nobody uses, and the nodes below it that only it used and that are not the operator's. Their
// images are brought to rest before permissions change; if that fails, so does the change.
func (tx *Tx) RemoveNode(n *Node) error {
	if len(n.parents) > 0 {
		return graphError(KindBusy, "Node %s is in use by %s", n.name, n.parents[0].userName())
	}
	tx.leaving = append(tx.leaving, n)
	position := tx.unlist(n)
	tx.OnRollBack(func() { tx.relist(n, position) })
	for _, e := range n.edges() {
		tx.unlink(e)
	}
	tx.OnCommit(func() error { return n.wrap(OpGraph, 0, 0, n.Driver().Close()) })
	for _, e := range n.edges() {
		if below := e.Node(); !below.monitor && len(below.parents) == 0 {
			if err := tx.RemoveNode(below); err != nil {
				return err
			}
		}
	}
	return nil
}

// Attach makes a backend on n, with the permissions that it needs and shares. name is how errors call its user. A
// backend that is attached while n is drained starts behind a closed gate.
func (tx *Tx) Attach(n *Node, name string, need, share Perm) (*Backend, error) {
	if need&(PermWrite|PermResize) != 0 && n.now().options.ReadOnly {
		return nil, &Error{Kind: KindReadOnly, Op: OpGraph, Node: n.name, Err: errReadOnly}
	}
	b := &Backend{name: name}
	b.Edge.name, b.backend, b.need, b.share = "root", b, need, share
	b.node.Store(n)
	if slices.ContainsFunc(tx.drained, func(d *Node) bool { return d.Below(n) }) {
		b.gate.close()
		tx.gates = append(tx.gates, &b.gate)
	}
	tx.link(&b.Edge)
	return b, nil
}

// Detach takes a backend away from its node. None of its requests may be in flight, and none may follow.
func (tx *Tx) Detach(b *Backend) { tx.unlink(&b.Edge) }

// Replace points every user of from to to, but for the edges of to itself. Both must be drained.
func (tx *Tx) Replace(from, to *Node) {
	for _, e := range slices.Clone(from.parents) {
		if e.parent == to {
			continue
		}
		tx.unlink(e)
		e.node.Store(to)
		tx.OnRollBack(func() { e.node.Store(from) })
		tx.link(e)
	}
}

// SetPermissions changes what a backend needs and shares.
func (tx *Tx) SetPermissions(b *Backend, need, share Perm) {
	oldNeed, oldShare := b.need, b.share
	b.need, b.share = need, share
	tx.OnRollBack(func() { b.need, b.share = oldNeed, oldShare })
	tx.touch(b.Node())
}

// link adds e to the users of its node.
func (tx *Tx) link(e *Edge) {
	n := e.Node()
	tx.g.mu.Lock()
	n.parents = append(n.parents, e)
	tx.g.mu.Unlock()
	tx.touch(n)
	tx.OnRollBack(func() {
		tx.g.mu.Lock()
		n.parents = slices.DeleteFunc(n.parents, func(p *Edge) bool { return p == e })
		tx.g.mu.Unlock()
	})
}

// unlink takes e out of the users of its node.
func (tx *Tx) unlink(e *Edge) {
	n := e.Node()
	tx.g.mu.Lock()
	at := slices.Index(n.parents, e)
	n.parents = slices.Delete(n.parents, at, at+1)
	tx.g.mu.Unlock()
	tx.touch(n)
	tx.OnRollBack(func() {
		tx.g.mu.Lock()
		n.parents = slices.Insert(n.parents, at, e)
		tx.g.mu.Unlock()
	})
}

func (tx *Tx) touch(n *Node) {
	if !slices.Contains(tx.touched, n) {
		tx.touched = append(tx.touched, n)
	}
}

func (tx *Tx) unlist(n *Node) (position int) {
	tx.g.mu.Lock()
	defer tx.g.mu.Unlock()
	position = slices.Index(tx.g.mu.order, n)
	tx.g.mu.order = slices.Delete(tx.g.mu.order, position, position+1)
	delete(tx.g.mu.nodes, n.name)
	return position
}

func (tx *Tx) relist(n *Node, position int) {
	tx.g.mu.Lock()
	defer tx.g.mu.Unlock()
	tx.g.mu.order = slices.Insert(tx.g.mu.order, position, n)
	tx.g.mu.nodes[n.name] = n
}

func (tx *Tx) rollBack() {
	for _, f := range slices.Backward(tx.undo) {
		f()
	}
	tx.undo, tx.done = nil, nil
}

func (tx *Tx) commit() error {
	var errs []error
	for _, f := range tx.done {
		errs = append(errs, f())
	}
	return errors.Join(errs...)
}

// Drain closes the gates of all backends above the nodes, but for the exempt ones, and waits until none of their requests
// is in flight. The gates stay closed until the change ends.
func (tx *Tx) Drain(ctx context.Context, exempt *Gate, nodes ...*Node) error {
	var fresh []*Backend
	for _, n := range nodes {
		tx.drained = append(tx.drained, n)
		for _, b := range tx.g.backendsAbove(n) {
			gate := &b.gate
			if gate != exempt && !slices.Contains(tx.gates, gate) {
				gate.close()
				tx.gates = append(tx.gates, gate)
				fresh = append(fresh, b)
			}
		}
	}
	for _, b := range fresh {
		tx.hurry(b.Node())
	}
	for _, b := range fresh {
		if err := b.gate.waitIdle(ctx); err != nil {
			return &Error{Kind: KindShutdown, Op: OpGraph, Err: err}
		}
	}
	return nil
}

// Resume opens the gates that this change closed, before its end.
func (tx *Tx) Resume() { tx.resume() }

func (tx *Tx) resume() {
	for _, gate := range tx.gates {
		gate.open()
	}
	for _, d := range tx.hurried {
		d.EndDrain()
	}
	tx.gates, tx.drained, tx.hurried = nil, nil, nil
}

// hurry has the drivers at n and below let go of the requests that they hold back.
func (tx *Tx) hurry(n *Node) {
	for _, below := range tx.topDown([]*Node{n}) {
		if d := below.now().delayer; d != nil && !slices.Contains(tx.hurried, d) {
			d.BeginDrain()
			tx.hurried = append(tx.hurried, d)
		}
	}
}

// backendsAbove lists the backends whose requests can reach n.
func (g *Graph) backendsAbove(n *Node) []*Backend {
	g.mu.RLock()
	defer g.mu.RUnlock()
	var found []*Backend
	seen := map[*Node]bool{n: true}
	for work := []*Node{n}; len(work) > 0; {
		node := work[0]
		work = work[1:]
		for _, e := range node.parents {
			if e.backend != nil {
				found = append(found, e.backend)
			} else if !seen[e.parent] {
				seen[e.parent] = true
				work = append(work, e.parent)
			}
		}
	}
	return found
}

// Resize changes the length of n, drained, to size bytes rounded up to whole sectors.
func (tx *Tx) Resize(ctx context.Context, n *Node, size int64) error {
	if size < 0 {
		return graphError(KindInvalid, "Parameter 'size' expects a >0 size")
	}
	if err := n.Busy(); err != nil {
		return err
	}
	probe, err := tx.Attach(n, "block_resize", PermConsistentRead|PermWrite|PermResize, PermAll)
	if err != nil {
		return err
	}
	if err := tx.applyPermissions(ctx); err != nil {
		return err
	}
	if err := tx.Drain(ctx, nil, n); err != nil {
		return err
	}
	size = (size + 511) &^ 511
	if err := tx.g.bitmapsFitAbove(n, size); err != nil {
		return err
	}
	if err := n.resize(ctx, size); err != nil {
		return err
	}
	tx.g.measureAbove(n)
	tx.Detach(probe)
	return nil
}

// measureAbove has the nodes above n look how long their disks are now.
func (g *Graph) measureAbove(n *Node) {
	g.mu.RLock()
	parents := slices.Clone(n.parents)
	g.mu.RUnlock()
	for _, e := range parents {
		if e.parent != nil {
			e.parent.measure()
			g.measureAbove(e.parent)
		}
	}
}
