// SPDX-License-Identifier: Apache-2.0

package handlers

import (
	"fmt"
	"slices"
	"strings"

	"github.com/blkmirror/blkmirror/block"
)

// place is how a node is found after a restart: by its name if that is the operator's, else by the way to it from a node with such a
// name: "top/backing/file".
func (p *picture) place(n *block.Node) (string, error) {
	if !strings.HasPrefix(n.Name(), "#") {
		return n.Name(), nil
	}
	for _, above := range p.graph.Nodes() {
		if _, ok := p.opened[above]; !ok {
			continue
		}
		for _, e := range above.Children() {
			if p.below(e.Node()) != n {
				continue
			}
			if way, err := p.place(above); err == nil {
				return way + "/" + e.Name(), nil
			}
		}
	}
	return "", fmt.Errorf("neither node '%s' with '%s' nor any node above it has a name that the operator gave it", n.Name(), n.FileName())
}

// at is the node at a place.
func (h *Handlers) at(place string) (*block.Node, error) {
	name, way, more := strings.Cut(place, "/")
	n, err := h.graph.Node(name)
	for err == nil && more {
		var role string
		role, way, more = strings.Cut(way, "/")
		edges := n.Unfiltered().Children()
		i := slices.IndexFunc(edges, func(e *block.Edge) bool { return e.Name() == role })
		if i < 0 {
			return nil, fmt.Errorf("there is no node at '%s': node '%s' has no child '%s'", place, n.Name(), role)
		}
		n = edges[i].Node().Unfiltered()
	}
	return n, err
}

// diskName is the file or the URI that a node's disk is in, wherever the daemon works from.
func (p *picture) diskName(n *block.Node) string {
	name := n.FileName()
	if strings.Contains(name, "://") {
		return name
	}
	return absolute(name, p.opened[n.Unfiltered()].folder)
}
