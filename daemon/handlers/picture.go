// SPDX-License-Identifier: Apache-2.0

package handlers

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/daemon/state"
	"github.com/blkmirror/blkmirror/qmp"
	"github.com/blkmirror/blkmirror/qmp/api"
)

// pivot is what a mirror is about to do: whoever stands on its filter over from will stand on to.
type pivot struct {
	from, to *block.Node
}

// picture is what there is, in definitions that make it again.
type picture struct {
	*state.State
	stands map[string]string
	knowledge
	pivot *pivot
	graph *block.Graph
	// trouble is told of jobs and exports that cannot come back.
	trouble func(error)
}

// definitionText is a definition in the one form in which definitions are compared.
func definitionText(v any) []byte {
	text, err := json.Marshal(json.RawMessage(qmp.Encode(v)))
	if err != nil {
		panic("handlers: a definition is no JSON: " + err.Error())
	}
	return text
}

func (h *Handlers) picture(v *pivot) *picture {
	p := &picture{State: &state.State{}, stands: map[string]string{}, knowledge: h.kept.known, pivot: v, graph: h.graph, trouble: h.kept.Trouble}
	p.leaveJobs()
	add := func(list *[]state.Item, kind, name string, i state.Item) {
		if g, ok := h.kept.given[kind+name]; ok {
			if string(g.base) == string(i.Definition) {
				return
			}
			i.CommandLine = g.text
		}
		*list = append(*list, i)
	}
	for _, o := range p.objects {
		add(&p.Objects, "object ", idOf(o.Definition), o)
	}
	if p.server != nil {
		var server []state.Item
		add(&server, "nbd-server ", "", state.Item{Definition: definitionText(p.server)})
		for i := range server {
			p.Server = &server[i]
		}
	}
	lengths := map[*block.Node]bool{}
	for _, given := range p.exports {
		o := *given
		if name, ok := h.kept.stands[o.ID]; ok {
			o.NodeName = name // it may be gone from the registry, when the daemon ends
		}
		if e, err := h.exports.Find(o.ID); err == nil {
			n := p.below(e.Node())
			p.lengthsOf(n, lengths)
			o.NodeName = n.Name()
		} else if v != nil && o.NodeName == v.from.Name() {
			o.NodeName = v.to.Name()
		}
		if o.NodeName != given.NodeName && o.NBD != nil && qmp.Or(o.NBD.Name, "") == "" {
			served := *o.NBD // clients know it by the name of the node that it was made on
			served.Name = &given.NodeName
			o.NBD = &served
		}
		p.stands[o.ID] = o.NodeName
		if n, err := p.graph.Node(o.NodeName); err == nil {
			if place, err := p.place(n); err == nil { // else the next start tells
				o.NodeName = place
			}
		}
		add(&p.Exports, "export ", o.ID, state.Item{Definition: definitionText(&o)})
	}
	for _, n := range slices.Backward(h.graph.Nodes()) {
		if _, ok := p.opened[n]; !ok {
			continue
		}
		p.addBitmaps(n)
		if !h.graph.Monitored(n) {
			continue
		}
		i := state.Item{Definition: definitionText(p.definition(n))}
		if size := n.Size(); lengths[n] {
			i.Size = &size
		}
		add(&p.Nodes, "node ", n.Name(), i)
	}
	p.addJobs(h.kept.jobs)
	return p
}

// leaveJobs has nodes be as they will be when the jobs have ended that made them writable.
func (p *picture) leaveJobs() {
	if len(p.back) == 0 {
		return
	}
	p.opened = maps.Clone(p.opened)
	for _, becomes := range p.back {
		for n, o := range becomes {
			if _, ok := p.opened[n]; ok {
				p.opened[n] = o
			}
		}
	}
}

// idOf is the id of an object or an export.
func idOf(definition []byte) string {
	var named struct{ ID string }
	_ = json.Unmarshal(definition, &named) // it was made by definitionText, or there is no id
	return named.ID
}

// addBitmaps adds the bitmaps of n that no image keeps.
func (p *picture) addBitmaps(n *block.Node) {
	at := n
	if p.pivot != nil && n == p.pivot.from {
		at = p.pivot.to // they move along
	}
	if strings.HasPrefix(at.Name(), "#") {
		return // another node may get this name the next time
	}
	for _, b := range n.Bitmaps() {
		if i := b.Info(); !i.Persistent && !i.Inconsistent {
			p.Bitmaps = append(p.Bitmaps, state.Bitmap{Node: at.Name(), Name: i.Name, Granularity: i.Granularity,
				Recording: i.Recording})
		}
	}
}

// lengthsOf adds n and what is below it, where the length of a disk only changes when somebody asks for that: not the files that
// a format makes longer as it needs.
func (p *picture) lengthsOf(n *block.Node, found map[*block.Node]bool) {
	found[n] = true
	for _, e := range n.Children() {
		if c := p.below(e.Node()); n.DriverName() != "qcow2" {
			p.lengthsOf(c, found)
		}
	}
}

// below is the node of the operator that a user of n stands on, without the filters of jobs.
func (p *picture) below(n *block.Node) *block.Node {
	to := n.Unfiltered()
	if to != n && p.pivot != nil && to == p.pivot.from {
		return p.pivot.to
	}
	return to
}

// definition makes n again as it is, with the nodes below it that are its own.
func (p *picture) definition(n *block.Node) *api.BlockdevOptions {
	was := p.opened[n]
	return p.withChildren(n, was.options)
}

func (p *picture) withChildren(n *block.Node, options *api.BlockdevOptions) *api.BlockdevOptions {
	o := copyDefinition(options, p.opened[n].folder)
	now := map[string]*block.Node{}
	for _, e := range n.Children() {
		now[e.Name()] = p.below(e.Node())
	}
	for _, c := range childrenOf(o) {
		if to := now[c.name]; to != nil {
			*c.ref = p.reference(n, to, c.ref)
		}
	}
	if o.Qcow2 != nil {
		o.Qcow2.Backing = p.backing(n, now["backing"], o.Qcow2.Backing)
	}
	return o
}

// workingFolder is what relative paths are relative to now; --daemonize leaves it.
func workingFolder() string {
	folder, err := os.Getwd()
	if err != nil {
		return "" // it was removed: no relative path leads anywhere
	}
	return folder
}

func absolute(path, folder string) string {
	if path == "" || filepath.IsAbs(path) || folder == "" {
		return path
	}
	return filepath.Join(folder, path)
}

// copyDefinition is a copy whose references to children can be changed, with absolute paths.
func copyDefinition(options *api.BlockdevOptions, folder string) *api.BlockdevOptions {
	o := *options
	switch {
	case o.File != nil:
		c := *o.File
		c.Filename = absolute(c.Filename, folder)
		o.File = &c
	case o.HostDevice != nil:
		c := *o.HostDevice
		c.Filename = absolute(c.Filename, folder)
		o.HostDevice = &c
	case o.Raw != nil:
		c := *o.Raw
		o.Raw = &c
	case o.Throttle != nil:
		c := *o.Throttle
		o.Throttle = &c
	case o.Blkdebug != nil:
		c := *o.Blkdebug
		o.Blkdebug = &c
	case o.Qcow2 != nil:
		c := *o.Qcow2
		if c.DataFile != nil {
			d := *c.DataFile
			c.DataFile = &d
		}
		o.Qcow2 = &c
	}
	return &o
}

// reference says which node the child of n is: by its name, or by its definition if it is n's own.
func (p *picture) reference(n, to *block.Node, was *api.BlockdevRef) api.BlockdevRef {
	opened, ok := p.opened[to]
	name := to.Name()
	switch {
	case !ok:
		return *was
	case p.graph.Monitored(to):
		return api.BlockdevRef{Reference: &name}
	case opened.parent == n:
		return api.BlockdevRef{Definition: p.definition(to)}
	case opened.options.NodeName != nil && p.defines(opened.parent, to):
		return api.BlockdevRef{Reference: &name} // defined there
	}
	return api.BlockdevRef{Definition: p.withChildren(to, opened.own())}
}

// defines says whether the definition of a node has that of a child in it.
func (p *picture) defines(n, child *block.Node) bool {
	if n == nil || !p.has(n) || !p.graph.Monitored(n) && !p.defines(p.opened[n].parent, n) {
		return false
	}
	// A job may have taken the child away, or n itself from below its parent.
	return slices.ContainsFunc(n.Children(), func(e *block.Edge) bool { return p.below(e.Node()) == child })
}

func (p *picture) has(n *block.Node) bool {
	found, err := p.graph.Node(n.Name())
	return err == nil && found == n
}

// backing says which backing node a qcow2 node has. What the header of its image says is not repeated.
func (p *picture) backing(n, to *block.Node, was *api.BlockdevRefOrNull) *api.BlockdevRefOrNull {
	if to == nil {
		disk, _ := n.Driver().(imageTeller)
		if was == nil && (disk == nil || disk.Info().BackingFile == "") {
			return nil
		}
		return &api.BlockdevRefOrNull{Null: &qmp.Null{}}
	}
	if _, ok := p.opened[to]; was == nil && (!ok || p.fromHeader(n, to) && p.asNamed(to)) {
		return nil
	}
	ref := p.reference(n, to, &api.BlockdevRef{})
	return &api.BlockdevRefOrNull{Definition: ref.Definition, Reference: ref.Reference}
}

// fromHeader says whether to is what the header of n says, as it is opened then.
func (p *picture) fromHeader(n, to *block.Node) bool {
	opened := p.opened[to]
	return opened.parent == n && !p.graph.Monitored(to) && opened.resolved.ReadOnly
}

// asNamed says whether the nodes below n are those that n and the images below it name.
func (p *picture) asNamed(n *block.Node) bool {
	for _, e := range n.Children() {
		if to := p.below(e.Node()); !p.fromHeader(n, to) || !p.asNamed(to) {
			return false
		}
	}
	return true
}
