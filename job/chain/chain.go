// SPDX-License-Identifier: Apache-2.0

// Package chain finds the way in a backing chain for the jobs that shorten one.
//
//	device ──► (filter) ──► overlay ──► (filter) ──► middle ──► base        from the top down
//
// A node of a chain stands for itself and the filters over it: whoever names one means the place.
package chain

import (
	"context"
	"errors"
	"slices"

	"github.com/blkmirror/blkmirror/block"
)

// Nodes lists a node and those below it in its backing chain, from the top down, each with the filters over it.
func Nodes(n *block.Node) (nodes []*block.Node) {
	for ; n != nil; n = n.Backing() {
		nodes = append(nodes, n)
	}
	return nodes
}

// Index is the place of a node in a chain, -1 if it has none.
func Index(nodes []*block.Node, n *block.Node) int {
	return slices.IndexFunc(nodes, func(other *block.Node) bool { return other.Unfiltered() == n.Unfiltered() })
}

// Reopen makes a node read-only, or writable. It changes the graph.
type Reopen func(ctx context.Context, n *block.Node, readOnly bool) error

// Writable are nodes that were read-only and are writable for as long as a job needs them to be.
type Writable struct {
	Reopen Reopen
	nodes  []*block.Node
}

// Open makes a node writable, and the filters over it.
func (w *Writable) Open(ctx context.Context, n *block.Node) error {
	var below []*block.Node
	for ; ; n = n.Children()[0].Node() {
		below = append(below, n)
		if n == n.Unfiltered() {
			break
		}
	}
	for _, n := range slices.Backward(below) {
		if !n.Options().ReadOnly {
			continue
		}
		if err := w.Reopen(ctx, n, false); err != nil {
			return err
		}
		w.nodes = append(w.nodes, n)
	}
	return nil
}

// Close makes the nodes read-only again, all but those at the place of keep; nil keeps none.
func (w *Writable) Close(ctx context.Context, keep *block.Node) error {
	var errs []error
	for _, n := range slices.Backward(w.nodes) {
		if keep == nil || n.Unfiltered() != keep.Unfiltered() {
			errs = append(errs, w.Reopen(ctx, n, true))
		}
	}
	w.nodes = nil
	return errors.Join(errs...)
}

// CanRename says whether the image of a node has the name of its backing file, so that it can get another one.
func CanRename(n *block.Node) bool {
	_, ok := n.Unfiltered().Driver().(block.BackingChanger)
	return ok
}

// Rename writes the name of the backing file into the image of a node, which is drained: name, or where that is nil the file
// name of the node below; none if there is none below. masked writes the format raw for what has no format.
func Rename(ctx context.Context, n, below *block.Node, name *string, masked bool) error {
	var file, format string
	if below != nil {
		below = below.Unfiltered()
		file, format = below.FileName(), below.DriverName()
		if masked && len(below.Children()) == 0 {
			format = "raw"
		}
	}
	if name != nil {
		file = *name
	}
	return n.Unfiltered().Driver().(block.BackingChanger).ChangeBackingFile(ctx, file, format)
}
