// SPDX-License-Identifier: Apache-2.0

package block

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
)

// Graph holds the nodes of one daemon. Names are unique in it.
//
// Its shape changes inside [Graph.Change] only, one change at a time; looking at it is possible at any time. A change may
// drain, so whoever waits for the graph must not hold anything that a request in flight could need.
type Graph struct {
	change chan struct{} // holds one token: the right to change the graph

	mu struct {
		sync.RWMutex
		nodes    map[string]*Node
		order    []*Node // oldest first
		lastAuto int     // number of the last generated node name
	}
}

// NewGraph returns an empty graph.
func NewGraph() *Graph {
	g := &Graph{change: make(chan struct{}, 1)}
	g.mu.nodes = map[string]*Node{}
	g.mu.lastAuto = 100
	return g
}

// Node finds a node by its name.
func (g *Graph) Node(name string) (*Node, error) {
	g.mu.RLock()
	defer g.mu.RUnlock()
	if n := g.mu.nodes[name]; n != nil {
		return n, nil
	}
	return nil, graphError(KindNotFound, "Cannot find device='%s' nor node-name='%s'", name, name)
}

// Nodes lists the nodes, the newest first.
func (g *Graph) Nodes() []*Node {
	g.mu.RLock()
	defer g.mu.RUnlock()
	nodes := slices.Clone(g.mu.order)
	slices.Reverse(nodes)
	return nodes
}

// Top is the node that users of n must stand on: n itself or the topmost filter over it, so that nobody gets around a
// filter.
func (g *Graph) Top(n *Node) *Node {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return topLocked(n)
}

func topLocked(n *Node) *Node {
	for {
		above := n
		for _, e := range n.parents {
			if e.parent != nil && e.parent.filter && e.parent.edges()[0] == e {
				above = e.parent
			}
		}
		if above == n {
			return n
		}
		n = above
	}
}

// Shown is the node that an operator sees a user of n on: below filters that nobody named.
func (g *Graph) Shown(n *Node) *Node {
	for n.filter && n.implicit {
		n = n.edges()[0].Node()
	}
	return n
}

// Users tells who uses n: nodes above it and backends.
func (g *Graph) Users(n *Node) []string {
	g.mu.RLock()
	defer g.mu.RUnlock()
	var names []string
	for _, e := range n.parents {
		names = append(names, e.userName())
	}
	return names
}

// Overlay is the node whose backing node n is, nil if there is none.
func (g *Graph) Overlay(n *Node) *Node {
	g.mu.RLock()
	defer g.mu.RUnlock()
	for _, e := range n.parents {
		if e.parent != nil && e.name == childBacking && !e.parent.filter {
			return e.parent
		}
	}
	return nil
}

// HasNodeAbove says whether another node stands on n, so that n is not the root of its part of the graph.
func (g *Graph) HasNodeAbove(n *Node) bool {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return slices.ContainsFunc(n.parents, func(e *Edge) bool { return e.parent != nil })
}

// Monitored says whether n was added by the operator, who alone removes it.
func (g *Graph) Monitored(n *Node) bool { return n.monitor }

// Change runs f, which may change the graph through tx, while no other change is under way. If f or the check of the
// permissions after it fails, everything is as before. What f drained goes on when Change returns.
func (g *Graph) Change(ctx context.Context, f func(tx *Tx) error) error {
	select {
	case g.change <- struct{}{}:
	case <-ctx.Done():
		return &Error{Kind: KindShutdown, Op: OpGraph, Err: context.Cause(ctx)}
	}
	defer func() { <-g.change }()
	tx := &Tx{g: g}
	defer tx.resume()
	err := f(tx)
	if err == nil {
		err = tx.applyPermissions(ctx)
	}
	if err != nil {
		tx.rollBack()
		return err
	}
	return tx.commit()
}

// CheckNodeName says what is wrong with a name that an operator wants for a node.
func CheckNodeName(name string) error {
	if !WellFormedID(name) {
		return graphError(KindInvalid, "Invalid node-name: '%s'", name)
	}
	if len(name) > 31 {
		return graphError(KindInvalid, "Node name too long: '%s' has %d characters, 31 is the most", name, len(name))
	}
	return nil
}

// WellFormedID says whether s can be the name of a node, a job or an export: a letter, then letters, digits, '-', '.'
// and '_'.
func WellFormedID(s string) bool {
	for i, c := range []byte(s) {
		letter := 'a' <= c|0x20 && c|0x20 <= 'z'
		if !letter && (i == 0 || !('0' <= c && c <= '9') && !strings.ContainsRune("-._", rune(c))) {
			return false
		}
	}
	return s != ""
}

func (g *Graph) generateNameLocked() string {
	for {
		g.mu.lastAuto++
		if name := fmt.Sprintf("#block%03d", g.mu.lastAuto); g.mu.nodes[name] == nil {
			return name
		}
	}
}
