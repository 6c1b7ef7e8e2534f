// SPDX-License-Identifier: Apache-2.0

package handlers

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/bitmap"
	"github.com/blkmirror/blkmirror/daemon/state"
	"github.com/blkmirror/blkmirror/job/mirror/intent"
	"github.com/blkmirror/blkmirror/qmp"
	"github.com/blkmirror/blkmirror/qmp/api"
)

// Given is one definition of the command line. One of the pointers is set.
type Given struct {
	Option string // how errors call it
	Object *api.ObjectOptions
	Node   *api.BlockdevOptions
	Server *api.NbdServerOptions
	Export *api.BlockExportOptions
}

// definition is one thing to be made at the start.
type definition struct {
	Given
	name    string // how reports call it
	text    []byte
	size    *int64 // what its disk must have, nil for any length
	fromOld bool   // the state has it, or what it says
}

// restoring is a start with a state.
type restoring struct {
	h      *Handlers
	old    *state.State
	list   []definition
	strict bool
	failed []error // what could not be brought back
	aside  bool    // the state was set aside, so that nothing of that is lost
	jobs   []*resumption
}

// Record is where changes are recorded.
type Record struct {
	Dir *state.Dir
	// Trouble is told of what went wrong and no command or job can tell.
	Trouble func(error)
	// Durability is that of intent files.
	Durability intent.Durability
	// Region and Hot are those of intent files, 0 for a choice, see [intent.Config].
	Region int64
	Hot    int
	// Resumed is told of a job that goes on, with the bytes that are left, -1 if that is not known, and why that is more than there
	// were; it may be nil.
	Resumed func(job string, left int64, reason string)
}

// Restore makes what the command line gives and then what the state has: objects, nodes in the order in which they stand on each
// other, bitmaps, jobs, the NBD server, exports: guests find the filters of jobs in their way. From then on changes are recorded. failed is what could not be brought back of the
// state; if that is to be nothing, strict, no export is made when something is missing before. Otherwise the state as it was is set
// aside. err is what is wrong otherwise. Nobody else may use h before it returns.
func (h *Handlers) Restore(ctx context.Context, to Record, commandLine []Given, old *state.State, strict bool) (failed []error,
	err error) {
	r := &restoring{h: h, old: old, strict: strict}
	h.kept.Record = to
	h.kept.waiting = &[]func(){}
	defer func() { h.letGo(err == nil && (!strict || len(failed) == 0)) }()
	h.kept.given = map[string]given{}
	if err := r.merge(commandLine); err != nil {
		return r.failed, err
	}
	r.lookAtJobs()
	if err := r.makeAll(ctx); err != nil {
		return r.failed, err
	}
	if strict && len(r.failed) > 0 {
		return r.failed, nil
	}
	return r.failed, r.begin(ctx)
}

// begin has changes recorded from now on.
func (r *restoring) begin(ctx context.Context) error {
	if err := r.setAside(); err != nil {
		return err
	}
	h := r.h
	err := h.graph.Change(ctx, func(*block.Tx) error {
		h.kept.known = h.knowledge()
		p := h.picture(nil) // it shows what the command line gave as changed
		for _, list := range [][]state.Item{p.Objects, p.Nodes, p.Exports} {
			for _, i := range list {
				r.compareWith(i)
			}
		}
		if p.Server != nil {
			r.compareWith(*p.Server)
		}
		h.kept.on = true
		return nil
	})
	if err != nil {
		return err
	}
	if err := h.note(ctx, func() {}); err != nil || r.aside {
		return err
	}
	_, files, err := r.jobsNow(ctx)
	return errors.Join(err, h.kept.Dir.DropIntents(files))
}

// compareWith notes how a picture shows what the command line gave and the state did not change.
func (r *restoring) compareWith(i state.Item) {
	if i.CommandLine == nil {
		return
	}
	for _, d := range r.list {
		g, ok := r.h.kept.given[d.name]
		if !ok || d.fromOld || string(g.text) != string(i.CommandLine) || g.base != nil {
			continue
		}
		g.base = i.Definition
		r.h.kept.given[d.name] = g
		return
	}
}

// merge puts together what is to be made.
func (r *restoring) merge(commandLine []Given) error {
	var server []state.Item
	if r.old.Server != nil {
		server = append(server, *r.old.Server)
	}
	var old []definition
	for _, kind := range []struct {
		list []state.Item
		new  func(*definition) qmp.Decodable
	}{
		{r.old.Objects, func(d *definition) qmp.Decodable { d.Object = new(api.ObjectOptions); return d.Object }},
		{r.old.Nodes, func(d *definition) qmp.Decodable { d.Node = new(api.BlockdevOptions); return d.Node }},
		{server, func(d *definition) qmp.Decodable { d.Server = new(api.NbdServerOptions); return d.Server }},
		{r.old.Exports, func(d *definition) qmp.Decodable { d.Export = new(api.BlockExportOptions); return d.Export }},
	} {
		for _, i := range kind.list {
			d := definition{size: i.Size, fromOld: true, text: i.CommandLine}
			if err := qmp.Unmarshal(i.Definition, kind.new(&d)); err != nil {
				r.fail(fmt.Errorf("%s: its definition makes no sense: %w", i.Definition, err))
				continue
			}
			d.complete()
			old = append(old, d)
		}
	}
	for _, g := range commandLine {
		d := definition{Given: g}
		d.complete()
		d.text = definitionText(d.value())
		if _, twice := r.h.kept.given[d.name]; twice {
			return fmt.Errorf("%s: there is a %s before", d.Option, d.name)
		}
		r.h.kept.given[d.name] = given{text: d.text}
		at := slices.IndexFunc(old, func(o definition) bool { return o.name == d.name })
		if at >= 0 {
			switch o := old[at]; {
			case o.text != nil && string(o.text) == string(d.text): // it was changed since
				o.Option = d.Option
				d = o
			case o.text == nil && string(definitionText(o.value())) == string(d.text):
			default:
				r.fail(fmt.Errorf("%s: the command line gives it another definition than it had", d.name))
			}
			old = slices.Delete(old, at, at+1)
		}
		r.list = append(r.list, d)
	}
	for _, o := range old {
		if o.text != nil {
			r.fail(fmt.Errorf("%s: the command line made it and it was changed since, but the command line does not have it any more",
				o.name))
			continue
		}
		r.list = append(r.list, o)
	}
	return nil
}

// complete gives a definition its name. Options without one are refused when they are carried out.
func (d *definition) complete() {
	switch {
	case d.Object != nil:
		d.name = "object " + d.Object.ID
	case d.Node != nil:
		d.name = "node " + qmp.Or(d.Node.NodeName, "")
	case d.Server != nil:
		d.name = "nbd-server "
	case d.Export != nil:
		d.name = "export " + d.Export.ID
	}
}

func (d *definition) value() any {
	switch {
	case d.Object != nil:
		return d.Object
	case d.Node != nil:
		return d.Node
	case d.Server != nil:
		return d.Server
	}
	return d.Export
}

func (r *restoring) fail(err error) { r.failed = append(r.failed, err) }

// result takes note of how a definition went. The command line must always be carried out.
func (r *restoring) result(d definition, err error) error {
	switch {
	case err == nil:
	case d.Option != "":
		return fmt.Errorf("%s: %w", d.Option, err)
	default:
		r.fail(fmt.Errorf("%s: %w", d.name, err))
	}
	return nil
}

func (r *restoring) makeAll(ctx context.Context) error {
	var nodes, exports []definition
	var server *definition
	for _, d := range r.list {
		switch {
		case d.Object != nil:
			if err := r.result(d, r.h.ObjectAdd(ctx, d.Object)); err != nil {
				return err
			}
		case d.Node != nil:
			nodes = append(nodes, d)
		case d.Server != nil:
			server = &d
		case d.Export != nil:
			exports = append(exports, d)
		}
	}
	for len(nodes) > 0 {
		at := max(0, slices.IndexFunc(nodes, func(d definition) bool { return !needs(d.Node, nodes) })) // a loop fails by itself
		if err := r.result(nodes[at], r.openNode(ctx, nodes[at])); err != nil {
			return err
		}
		nodes = slices.Delete(nodes, at, at+1)
	}
	for i := range r.old.Bitmaps {
		b := &r.old.Bitmaps[i]
		if err := r.addBitmap(ctx, b); err != nil {
			r.fail(fmt.Errorf("bitmap '%s' of node '%s': %w", b.Name, b.Node, err))
		}
	}
	if r.strict && len(r.failed) > 0 {
		r.lackingJobs()
		return nil
	}
	r.resumeJobs(ctx)
	if r.strict && len(r.failed) > 0 {
		return nil
	}
	if server != nil {
		if err := r.result(*server, r.h.StartNBD(ctx, server.Server)); err != nil {
			return err
		}
	}
	if r.strict && len(r.failed) > 0 {
		return nil
	}
	if err := r.useContents(ctx); err != nil {
		return err
	}
	for _, d := range exports {
		if err := r.result(d, r.addExport(ctx, d.Export)); err != nil {
			return err
		}
	}
	return nil
}

// addExport makes an export, whose node may be given by its place.
func (r *restoring) addExport(ctx context.Context, o *api.BlockExportOptions) error {
	if strings.Contains(o.NodeName, "/") {
		n, err := r.h.at(o.NodeName)
		if err != nil {
			return err
		}
		named := *o
		named.NodeName = n.Name()
		o = &named
	}
	return r.h.BlockExportAdd(ctx, o)
}

// needs says whether a node refers to one that is still to be opened.
func needs(o *api.BlockdevOptions, waiting []definition) bool {
	refs := childrenOf(o)
	if o.Qcow2 != nil && o.Qcow2.Backing != nil {
		b := o.Qcow2.Backing
		refs = append(refs, childOption{"backing", &api.BlockdevRef{Definition: b.Definition, Reference: b.Reference}})
	}
	for _, c := range refs {
		switch ref := c.ref; {
		case ref.Reference != nil && slices.ContainsFunc(waiting, func(d definition) bool { return defines(d.Node, *ref.Reference) }):
			return true
		case ref.Definition != nil && needs(ref.Definition, waiting):
			return true
		}
	}
	return false
}

// defines says whether options define a node with a name, at any depth.
func defines(o *api.BlockdevOptions, name string) bool {
	if qmp.Or(o.NodeName, "") == name {
		return true
	}
	if o.Qcow2 != nil && o.Qcow2.Backing != nil && o.Qcow2.Backing.Definition != nil && defines(o.Qcow2.Backing.Definition, name) {
		return true
	}
	return slices.ContainsFunc(childrenOf(o), func(c childOption) bool {
		return c.ref.Definition != nil && defines(c.ref.Definition, name)
	})
}

// openNode opens a node whose disk must have the length that it had.
func (r *restoring) openNode(ctx context.Context, d definition) error {
	if err := r.h.BlockdevAdd(ctx, d.Node); err != nil || d.size == nil {
		return err
	}
	n, err := r.h.graph.Node(*d.Node.NodeName)
	if err != nil {
		return err
	}
	if n.Size() == *d.size {
		return nil
	}
	err = fmt.Errorf("its disk '%s' has %d bytes, and it had %d", n.FileName(), n.Size(), *d.size)
	return errors.Join(err, r.h.BlockdevDel(ctx, &api.BlockdevDelArguments{NodeName: n.Name()}))
}

// addBitmap makes a bitmap with the contents that it had. If they are not known since there was no orderly stop, all of it is
// dirty.
func (r *restoring) addBitmap(ctx context.Context, b *state.Bitmap) error {
	n, err := r.h.graph.Node(b.Node)
	if err != nil {
		return err
	}
	var contents []byte
	if b.Contents != nil {
		if b.Contents.Disk != n.Size() {
			return fmt.Errorf("it is of a disk of %d bytes, and the node has %d", b.Contents.Disk, n.Size())
		}
		if contents, err = r.h.kept.Dir.LoadContents(b.Contents); err != nil {
			return err
		}
	}
	return r.h.graph.Change(ctx, func(tx *block.Tx) error {
		made, err := tx.AddBitmap(n, block.BitmapConfig{Name: b.Name, Granularity: b.Granularity, Disabled: !b.Recording})
		if err != nil {
			return err
		}
		bits, err := bitmap.New(n.Size(), b.Granularity)
		if err != nil {
			return err
		}
		if b.Contents == nil {
			bits.Set(bits.All())
			r.h.kept.Trouble(fmt.Errorf("bitmap '%s' of node '%s': the daemon was not stopped in good order, so all of it counts as dirty",
				b.Name, b.Node))
		} else if len(contents) != bitmapBytes(bits) {
			return fmt.Errorf("its contents have %d bytes and should have %d", len(contents), bitmapBytes(bits))
		} else {
			bits.MergeBytes(0, contents)
		}
		return tx.MergeBitmap(made, bits)
	})
}

// setAside keeps the state as it was if something of it could not be brought back.
func (r *restoring) setAside() error {
	if len(r.failed) == 0 || r.aside {
		return nil
	}
	name, err := r.h.kept.Dir.SetAside(true)
	if err == nil {
		r.aside = true
		r.h.kept.Trouble(fmt.Errorf("not all could be restored; the state as it was is in '%s'", name))
	}
	return err
}

// useContents sees to it that the contents of bitmaps and the intent files of jobs are not read a second time: from here on
// guests change what they are about.
func (r *restoring) useContents(ctx context.Context) (err error) {
	if err := r.setAside(); err != nil {
		return err
	}
	used := *r.old
	used.Bitmaps = slices.Clone(r.old.Bitmaps)
	for i := range used.Bitmaps {
		used.Bitmaps[i].Contents = nil
	}
	var files []string
	if used.Jobs, files, err = r.jobsNow(ctx); err != nil {
		return err
	}
	if err := r.h.kept.Dir.Save(&used); err != nil {
		return err
	}
	if r.aside {
		return nil
	}
	return errors.Join(r.h.kept.Dir.DropContents(), r.h.kept.Dir.DropIntents(files))
}
