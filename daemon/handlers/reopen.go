// SPDX-License-Identifier: Apache-2.0

package handlers

import (
	"context"
	"fmt"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/driver/file"
	"github.com/blkmirror/blkmirror/qmp"
	"github.com/blkmirror/blkmirror/qmp/api"
)

// BlockdevReopen changes options of nodes while they are in use: of all or of none.
func (h *Handlers) BlockdevReopen(ctx context.Context, a *api.BlockdevReopenArguments) error {
	defer h.forgetClosed()
	return h.change(ctx, func(tx *block.Tx) error {
		r := h.newReopening()
		var nodes []*block.Node
		for i := range a.Options {
			o, err := byName(&a.Options[i])
			if err != nil {
				return err
			}
			if o.NodeName == nil {
				return qmp.Errorf("node-name not specified")
			}
			n, err := h.graph.Node(*o.NodeName)
			if err != nil {
				return qmp.Errorf("Failed to find node with node-name='%s'", *o.NodeName)
			}
			if r.given[n] != nil {
				return qmp.Errorf("Node '%s' is listed more than once", *o.NodeName)
			}
			r.given[n], r.listed[n] = o, true
			nodes = append(nodes, n)
		}
		return r.carryOut(ctx, tx, nodes)
	})
}

// writable runs f while n can be written: a node that is read-only is opened for writing meanwhile.
func (h *Handlers) writable(ctx context.Context, tx *block.Tx, n *block.Node, f func() error) error {
	change := func(readOnly bool) error {
		r := h.newReopening()
		r.readOnly[n] = readOnly
		return r.carryOut(ctx, tx, []*block.Node{n})
	}
	was := n.Options().ReadOnly
	if was {
		if err := change(false); err != nil {
			return err
		}
	} else if err := tx.Drain(ctx, nil, n); err != nil {
		return err
	}
	if err := f(); err != nil || !was {
		return err
	}
	return change(true)
}

// reopening works out what becomes of which node.
type reopening struct {
	h        *Handlers
	given    map[*block.Node]*api.BlockdevOptions // what the operator said
	readOnly map[*block.Node]bool                 // what is to change where the operator said nothing
	listed   map[*block.Node]bool                 // of those, the ones that do not stand inline in their parents' options
	detached map[*block.Node]bool                 // inline children that their parents do not have any more
	becomes  map[*block.Node]*openedNode          // what was planned
	changes  []block.Reopen
}

func (h *Handlers) newReopening() *reopening {
	h.orphan()
	return &reopening{h: h, given: map[*block.Node]*api.BlockdevOptions{}, readOnly: map[*block.Node]bool{},
		listed: map[*block.Node]bool{}, detached: map[*block.Node]bool{}, becomes: map[*block.Node]*openedNode{}}
}

// carryOut reopens nodes, and those that inherit from them.
func (r *reopening) carryOut(ctx context.Context, tx *block.Tx, nodes []*block.Node) error {
	for _, n := range nodes {
		if err := r.plan(ctx, n); err != nil {
			return err
		}
	}
	if err := tx.Reopen(ctx, r.changes); err != nil {
		return err
	}
	for n, o := range r.becomes {
		was := r.h.opened[n]
		if r.detached[n] {
			o.parent = nil
		}
		r.h.opened[n] = o
		tx.OnRollBack(func() { r.h.opened[n] = was })
	}
	for n := range r.detached {
		if r.becomes[n] == nil {
			was := r.h.opened[n].parent
			r.h.opened[n].parent = nil
			tx.OnRollBack(func() { r.h.opened[n].parent = was })
		}
	}
	return nil
}

// plan works out what becomes of n, after the node that it inherits from and before those that inherit from it.
func (r *reopening) plan(ctx context.Context, n *block.Node) error {
	if r.becomes[n] != nil {
		return nil
	}
	was := r.h.opened[n]
	if was == nil {
		return qmp.Errorf("Node '%s' cannot be reopened: it belongs to a job", n.Name())
	}
	if was.parent != nil {
		if err := r.plan(ctx, was.parent); err != nil {
			return err
		}
		if r.becomes[n] != nil {
			return nil
		}
	}
	o := r.given[n]
	if o == nil {
		o = was.options
	} else if string(o.Driver) != n.DriverName() {
		return qmp.Errorf("Cannot change the option 'driver'")
	}
	becomes := &openedNode{options: o, parent: was.parent, role: was.role, folder: was.folder}
	var inherited *nodeOptions
	switch {
	case was.parent == nil || r.detached[n]:
	case r.listed[n]:
		inherited = &nodeOptions{} // what is not listed gets its default, and that of discard is another for inline children
	default:
		inherited = &r.becomes[was.parent].resolved
	}
	if readOnly, ok := r.readOnly[n]; ok {
		changed := *o
		changed.ReadOnly = &readOnly
		o, becomes.options = &changed, &changed
	}
	resolved, err := commonOptions(o, inherited, was.role)
	if err != nil {
		return err
	}
	becomes.resolved = *resolved
	r.becomes[n] = becomes
	change := block.Reopen{Node: n, Options: resolved.Options}
	if change.Children, err = r.children(n, o); err != nil {
		return err
	}
	exchange, err := r.driver(n, was, becomes, &change)
	if err != nil {
		return err
	}
	if exchange {
		open, err := r.h.driver(ctx, o, resolved)
		if err != nil {
			return err
		}
		if f, ok := n.Driver().(*file.File); ok {
			open = sameImage(f, open)
		}
		change.Open = open
	}
	if exchange || r.given[n] != nil || *resolved != was.resolved {
		r.changes = append(r.changes, change)
	}
	for _, e := range n.Children() {
		if c := e.Node(); r.inherits(c, n) {
			if err := r.plan(ctx, c); err != nil {
				return err
			}
		}
	}
	return nil
}

// inherits says whether c is a child that n defines inline.
func (r *reopening) inherits(c, n *block.Node) bool {
	o := r.h.opened[c]
	return o != nil && o.parent == n && !r.detached[c]
}

// children finds the children that n is to have.
func (r *reopening) children(n *block.Node, o *api.BlockdevOptions) ([]block.Child, error) {
	now := map[string]*block.Node{}
	for _, e := range n.Children() {
		now[e.Name()] = e.Node()
	}
	if r.given[n] != nil {
		options := childrenOf(o)
		if o.Qcow2 != nil {
			b := o.Qcow2.Backing
			switch disk, _ := n.Driver().(imageTeller); {
			case b == nil && (now["backing"] != nil || disk != nil && disk.Info().BackingFile != ""):
				return nil, qmp.Errorf("backing is missing for '%s'", n.Name())
			case b == nil:
			case b.Null != nil:
				if gone := now["backing"]; gone != nil && r.inherits(gone, n) {
					r.detached[gone] = true
				}
				delete(now, "backing")
			default:
				options = append(options, childOption{"backing", &api.BlockdevRef{Definition: b.Definition, Reference: b.Reference}})
			}
		}
		for _, c := range options {
			to, err := r.child(n, now[c.name], c)
			if err != nil {
				return nil, err
			}
			now[c.name] = to
		}
	}
	var list []block.Child
	for role, node := range now {
		list = append(list, block.Child{Name: role, Node: node})
	}
	return list, nil
}

// child finds the child that n is to have in a role; now is the one that it has, nil if it has none.
func (r *reopening) child(n, now *block.Node, c childOption) (*block.Node, error) {
	if d := c.ref.Definition; d != nil {
		if now == nil || !r.inherits(now, n) || r.given[now] != nil {
			return nil, qmp.Errorf("The '%s' child of node '%s' can only be given by its name", c.name, n.Name())
		}
		if d.NodeName != nil && *d.NodeName != now.Name() {
			return nil, qmp.Errorf("Cannot change the option '%s.node-name'", c.name)
		}
		var err error
		r.given[now], err = byName(d)
		return now, err
	}
	named, err := r.h.graph.Node(*c.ref.Reference)
	if err != nil {
		return nil, err
	}
	to := r.h.graph.Top(named)
	if named == now {
		to = now
	}
	if now != nil && to != now && r.inherits(now, n) {
		r.detached[now] = true
	}
	return to, nil
}

// driver says whether n needs a new driver.
func (r *reopening) driver(n *block.Node, was, becomes *openedNode, change *block.Reopen) (bool, error) {
	old, o := was.options, becomes.options
	switch {
	case o.File != nil:
		return fileChanges(old.File, o.File, was, becomes)
	case o.HostDevice != nil:
		return fileChanges(old.HostDevice, o.HostDevice, was, becomes)
	case o.NullCo != nil:
		return false, sameNull(old.NullCo, o.NullCo)
	case o.NullAIO != nil:
		return false, sameNull(old.NullAIO, o.NullAIO)
	case o.NBD != nil:
		return false, sameNBD(n, was, becomes)
	case o.Raw != nil:
		change.Content = qmp.Or(old.Raw.Offset, 0) != qmp.Or(o.Raw.Offset, 0) ||
			qmp.Or(old.Raw.Size, -1) != qmp.Or(o.Raw.Size, -1)
	case o.Qcow2 != nil:
		return r.given[n] != nil || becomes.resolved != was.resolved, nil
	}
	return change.Children != nil && r.given[n] != nil, nil
}

func sameNull(old, o *api.BlockdevOptionsNull) error {
	switch {
	case qmp.Or(old.Size, 1<<30) != qmp.Or(o.Size, 1<<30):
		return qmp.Errorf("Cannot change the option 'size'")
	case qmp.Or(old.LatencyNS, 0) != qmp.Or(o.LatencyNS, 0):
		return qmp.Errorf("Cannot change the option 'latency-ns'")
	case qmp.Or(old.ReadZeroes, false) != qmp.Or(o.ReadZeroes, false):
		return qmp.Errorf("Cannot change the option 'read-zeroes'")
	}
	return nil
}

// fileChanges says whether an image must be opened anew. Its name stays, and so does the way of access to it.
func fileChanges(old, o *api.BlockdevOptionsFile, was, becomes *openedNode) (bool, error) {
	switch {
	case old.Filename != o.Filename:
		return false, qmp.Errorf("Cannot change the option 'filename'")
	case either(string(old.AIO), "threads") != either(string(o.AIO), "threads"):
		return false, qmp.Errorf("Cannot change the option 'aio'")
	case either(string(old.Locking), "auto") != either(string(o.Locking), "auto"):
		return false, qmp.Errorf("Cannot change the option 'locking'")
	}
	a, b := was.resolved, becomes.resolved
	return a.ReadOnly != b.ReadOnly || a.autoReadOnly != b.autoReadOnly || a.Direct != b.Direct ||
		a.ForceShare != b.ForceShare, nil
}

// sameImage opens an image anew and sees to it that its name still leads to the same one.
func sameImage(was *file.File, open func([]*block.Edge) (block.Driver, error)) func([]*block.Edge) (block.Driver, error) {
	return func(edges []*block.Edge) (block.Driver, error) {
		d, err := open(edges)
		if err != nil {
			return nil, err
		}
		if is := d.(*file.File); !was.SameImage(is) {
			_ = d.Close()
			return nil, fmt.Errorf("Could not reopen '%s': the name leads to another file now", is.FileName())
		}
		return d, nil
	}
}
