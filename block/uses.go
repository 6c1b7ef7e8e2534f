// SPDX-License-Identifier: Apache-2.0

package block

// Use is one edge of the graph, as it is drawn for an operator.
type Use struct {
	Parent *Node  // the node above; nil if the user is outside the graph
	User   string // how errors call the user then, such as "export 'e'"
	Role   string // of the child: "file", "backing", "target"; "root" if there is no parent
	Child  *Node
}

// Uses lists all edges, those of the oldest nodes first. It may be called at any time.
func (g *Graph) Uses() []Use {
	g.mu.RLock()
	defer g.mu.RUnlock()
	var list []Use
	for _, n := range g.mu.order {
		for _, e := range n.parents {
			u := Use{Parent: e.parent, Role: e.name, Child: n}
			if e.backend != nil {
				u.User = e.backend.name
			}
			list = append(list, u)
		}
	}
	return list
}
