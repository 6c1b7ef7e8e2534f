// SPDX-License-Identifier: Apache-2.0

package handlers

import (
	"context"
	"time"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/driver/file"
	"github.com/blkmirror/blkmirror/block/driver/null"
	"github.com/blkmirror/blkmirror/block/driver/raw"
	"github.com/blkmirror/blkmirror/block/filter/fault"
	"github.com/blkmirror/blkmirror/block/filter/throttle"
	"github.com/blkmirror/blkmirror/qmp"
	"github.com/blkmirror/blkmirror/qmp/api"
)

// BlockdevAdd opens a node.
func (h *Handlers) BlockdevAdd(ctx context.Context, o *api.BlockdevOptions) error {
	if o.NodeName == nil {
		return qmp.Errorf("'node-name' must be specified for the root node")
	}
	return h.connecting(ctx, func() error {
		return h.change(ctx, func(tx *block.Tx) error {
			_, err := h.open(ctx, tx, o, site{})
			return err
		})
	})
}

// open opens a node and the children that are defined inside it or that its image names.
func (h *Handlers) open(ctx context.Context, tx *block.Tx, o *api.BlockdevOptions, at site) (*block.Node, error) {
	o, err := byName(o)
	if err != nil {
		return nil, err
	}
	if err := h.checkNewName(o.NodeName); err != nil {
		return nil, err
	}
	options, err := commonOptions(o, at.parent, at.role)
	if err != nil {
		return nil, err
	}
	c := block.NodeConfig{Name: qmp.Or(o.NodeName, ""), DriverName: string(o.Driver), Options: options.Options,
		Monitor: at.parent == nil}
	if c.Open, err = h.driver(ctx, o, options); err != nil {
		return nil, err
	}
	children, err := h.children(ctx, tx, o, options, at)
	if err != nil {
		return nil, err
	}
	for _, below := range children {
		c.Children = append(c.Children, below.Child)
	}
	if err := h.checkRoom(); err != nil {
		return nil, err
	}
	n, err := tx.AddNode(c)
	if err != nil {
		return nil, err
	}
	if err := tx.LoadBitmaps(ctx, n); err != nil {
		return nil, err
	}
	h.tellOfConnection(n)
	h.opened[n] = &openedNode{options: o, resolved: *options, role: at.role, folder: workingFolder()}
	tx.OnRollBack(func() { delete(h.opened, n) })
	for _, below := range children {
		if below.inline {
			h.opened[below.Node].parent = n
		}
	}
	return n, nil
}

// checkRoom says whether there may be one more node.
func (h *Handlers) checkRoom() error {
	most := h.config.Limits.Nodes
	if most == 0 || len(h.opened) < most {
		return nil
	}
	if h.forgetClosed(); len(h.opened) < most {
		return nil
	}
	return qmp.Errorf("There are %d nodes, and --max-nodes lets no more be made", most)
}

// checkNewName says what is wrong with the name of a node that is to be; nil is one that is chosen for it.
func (h *Handlers) checkNewName(name *string) error {
	if name == nil {
		return nil
	}
	if err := block.CheckNodeName(*name); err != nil {
		return err
	}
	if _, err := h.graph.Node(*name); err == nil {
		return qmp.Errorf("Duplicate nodes with node-name='%s'", *name)
	}
	return nil
}

// openedNode remembers what a node was opened with, for when it is reopened.
type openedNode struct {
	options  *api.BlockdevOptions // as the operator gave them
	resolved nodeOptions          // with what it inherited
	parent   *block.Node          // the node above that defines or names it and that it inherits from; nil if there is none
	role     string               // what it was opened as for that node
	folder   string               // what a relative path in options is relative to
}

// childOption is what options say of the child in a role.
type childOption struct {
	name string
	ref  *api.BlockdevRef
}

// childrenOf is what options say of the children of a node, but for its backing node.
func childrenOf(o *api.BlockdevOptions) []childOption {
	switch {
	case o.Raw != nil:
		return []childOption{{"file", &o.Raw.File}}
	case o.Qcow2 != nil && o.Qcow2.DataFile != nil:
		return []childOption{{"file", &o.Qcow2.File}, {"data-file", o.Qcow2.DataFile}}
	case o.Qcow2 != nil:
		return []childOption{{"file", &o.Qcow2.File}}
	case o.Throttle != nil:
		return []childOption{{"file", &o.Throttle.File}}
	case o.Blkdebug != nil:
		return []childOption{{"image", &o.Blkdebug.Image}}
	}
	return nil
}

// driver is how the driver that options describe is made on the edges to its children.
func (h *Handlers) driver(ctx context.Context, o *api.BlockdevOptions, n *nodeOptions) (func(edges []*block.Edge) (block.Driver, error),
	error) {
	type edges = []*block.Edge
	switch {
	case o.File != nil:
		return func(edges) (block.Driver, error) { return h.openFile(o.File, n, false) }, nil
	case o.HostDevice != nil:
		return func(edges) (block.Driver, error) { return h.openFile(o.HostDevice, n, true) }, nil
	case o.NullCo != nil:
		return func(edges) (block.Driver, error) { return openNull(o.NullCo) }, nil
	case o.NullAIO != nil:
		return func(edges) (block.Driver, error) { return openNull(o.NullAIO) }, nil
	case o.NBD != nil:
		return h.openNBD(o.NBD, n)
	case o.Raw != nil:
		window := raw.Options{Offset: qmp.Or(o.Raw.Offset, 0), Size: o.Raw.Size}
		return func(e edges) (block.Driver, error) { return raw.Open(e[0], window) }, nil
	case o.Qcow2 != nil:
		options := qcow2Options(o.Qcow2, n)
		return func(e edges) (block.Driver, error) { return h.openQcow2(ctx, options, e) }, nil
	case o.Throttle != nil:
		group := h.objects[o.Throttle.ThrottleGroup].group
		if group == nil {
			return nil, qmp.Errorf("Throttle group '%s' does not exist", o.Throttle.ThrottleGroup)
		}
		return func(e edges) (block.Driver, error) { return throttle.Open(e[0], group), nil }, nil
	case o.Blkdebug != nil:
		rules, err := faultOptions(o.Blkdebug)
		if err != nil {
			return nil, err
		}
		return func(e edges) (block.Driver, error) { return fault.Open(e[0], rules) }, nil
	}
	return nil, qmp.Errorf("Driver '%s' cannot be opened here", o.Driver)
}

// child finds the node that a reference names, with the filters over it, or opens the one that it defines.
func (h *Handlers) child(ctx context.Context, tx *block.Tx, ref *api.BlockdevRef, at site) (child, error) {
	if ref.Reference == nil {
		n, err := h.open(ctx, tx, ref.Definition, at)
		return child{block.Child{Name: at.role, Node: n}, true}, err
	}
	n, err := h.graph.Node(*ref.Reference)
	if err != nil {
		return child{}, err
	}
	return child{Child: block.Child{Name: at.role, Node: h.graph.Top(n)}}, nil
}

// nodeOptions are the options that a child may inherit.
type nodeOptions struct {
	block.Options
	autoReadOnly bool
}

// commonOptions are the options that all nodes have. parent has those of the node above in which it stands inline; a child
// inherits from it unless it says otherwise.
func commonOptions(o *api.BlockdevOptions, parent *nodeOptions, role string) (*nodeOptions, error) {
	n := &nodeOptions{}
	if parent != nil {
		*n = *parent
		n.Discard, n.DetectZeroes = true, block.DetectZeroesOff
		if role == "backing" {
			n.ReadOnly, n.autoReadOnly = true, false
		}
	}
	n.ReadOnly = qmp.Or(o.ReadOnly, n.ReadOnly)
	n.autoReadOnly = qmp.Or(o.AutoReadOnly, n.autoReadOnly)
	n.ForceShare = qmp.Or(o.ForceShare, n.ForceShare)
	if o.Cache != nil {
		n.Direct = qmp.Or(o.Cache.Direct, n.Direct)
		n.NoFlush = qmp.Or(o.Cache.NoFlush, n.NoFlush)
	}
	if o.Discard != "" {
		n.Discard = o.Discard == api.BlockdevDiscardOptionsUnmap
	}
	switch o.DetectZeroes {
	case api.BlockdevDetectZeroesOptionsOn:
		n.DetectZeroes = block.DetectZeroesOn
	case api.BlockdevDetectZeroesOptionsUnmap:
		n.DetectZeroes = block.DetectZeroesUnmap
	}
	switch {
	case n.DetectZeroes == block.DetectZeroesUnmap && !n.Discard:
		return nil, qmp.Errorf("setting detect-zeroes to unmap is not allowed without setting discard operation to unmap")
	case n.ForceShare && !n.ReadOnly:
		return nil, qmp.Errorf("force-share=on can only be used with read-only images")
	case !qmp.Or(o.Active, true):
		return nil, qmp.Errorf("Parameter 'active' does not accept value 'false': nodes are always active here")
	}
	return n, nil
}

func (h *Handlers) openFile(o *api.BlockdevOptionsFile, n *nodeOptions, device bool) (block.Driver, error) {
	if o.PrManager != nil {
		return nil, qmp.Errorf("Parameter 'pr-manager' is not supported")
	}
	f := file.Options{Filename: o.Filename, HostDevice: device, ReadOnly: n.ReadOnly, AutoReadOnly: n.autoReadOnly,
		Direct: n.Direct, ForceShare: n.ForceShare}
	switch o.Locking {
	case api.OnOffAutoOn:
		f.Locking = file.LockingOn
	case api.OnOffAutoOff:
		f.Locking = file.LockingOff
	}
	switch o.AIO {
	case api.BlockdevAioOptionsNative:
		f.AIO = file.AIONative
	case api.BlockdevAioOptionsIOUring:
		f.AIO = file.AIOURing
	}
	return h.config.Host.OpenFile(f)
}

func openNull(o *api.BlockdevOptionsNull) (block.Driver, error) {
	return null.Open(null.Options{Size: o.Size, Latency: time.Duration(qmp.Or(o.LatencyNS, 0)),
		ReadZeroes: qmp.Or(o.ReadZeroes, false)})
}

// BlockdevDel closes a node.
func (h *Handlers) BlockdevDel(ctx context.Context, args *api.BlockdevDelArguments) error {
	defer h.forgetClosed()
	return h.change(ctx, func(tx *block.Tx) error {
		n, err := h.graph.Node(args.NodeName)
		if err != nil {
			return qmp.Errorf("Failed to find node with node-name='%s'", args.NodeName)
		}
		if err := n.Busy(); err != nil {
			return err
		}
		if users := h.graph.Users(n); len(users) == 0 && !h.graph.Monitored(n) {
			return qmp.Errorf("Node %s is not owned by the monitor", args.NodeName)
		}
		return tx.RemoveNode(n)
	})
}

// forgetClosed forgets what nodes that are gone were opened with.
func (h *Handlers) forgetClosed() {
	for n := range h.opened {
		if other, err := h.graph.Node(n.Name()); err != nil || other != n {
			delete(h.opened, n)
		}
	}
}

// BlockResize changes the length of a node.
func (h *Handlers) BlockResize(ctx context.Context, args *api.BlockResizeArguments) error {
	device, name := qmp.Or(args.Device, ""), qmp.Or(args.NodeName, "")
	return h.change(ctx, func(tx *block.Tx) error {
		n, err := h.graph.Node(name)
		if err != nil || device != "" {
			return qmp.Errorf("Cannot find device='%s' nor node-name='%s'", device, name)
		}
		return tx.Resize(ctx, n, args.Size)
	})
}
