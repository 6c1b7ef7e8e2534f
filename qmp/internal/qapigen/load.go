// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"

	qapischema "github.com/digitalocean/go-qemu/qapi-schema"
)

// builtins are the types that need no definition.
var builtins = []string{
	"str", "bool", "number", "int", "int8", "int16", "int32", "int64",
	"uint8", "uint16", "uint32", "uint64", "size", "any", "null",
}

// load reads the schema from its files.
func load(files fs.FS) (*model, error) {
	names, err := fs.Glob(files, "*.json")
	if err != nil {
		return nil, err
	}
	l := loader{
		model: &model{byName: map[string]definition{}},
		docs:  map[string]doc{},
	}
	for _, name := range names {
		text, err := fs.ReadFile(files, name)
		if err != nil {
			return nil, err
		}
		if err := l.file(name, string(text)); err != nil {
			return nil, err
		}
	}
	return l.model, l.resolve()
}

// loader fills a model: all definitions by name first, then what they refer to.
type loader struct {
	*model
	docs  map[string]doc
	nodes []qapischema.Node
}

// file parses one file, and compares what came out with what the scan found.
func (l *loader) file(name, text string) error {
	found, err := scan(name, text)
	if err != nil {
		return err
	}
	tree, err := qapischema.Parse(text)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	var parsed []string
	for _, child := range tree.Children {
		label, err := describe(child.Node)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		parsed = append(parsed, label)
		l.nodes = append(l.nodes, child.Node)
	}
	if !slices.Equal(parsed, found.definitions) {
		at := 0
		for at < len(parsed) && at < len(found.definitions) && parsed[at] == found.definitions[at] {
			at++
		}
		stopped := "the end"
		if at < len(found.definitions) {
			stopped = found.definitions[at]
		}
		return fmt.Errorf("%s: %d definitions in the text, %d were parsed; look at '%s'",
			name, len(found.definitions), len(parsed), stopped)
	}
	l.parts = append(l.parts, part{found.title, found.definitions})
	for name, d := range found.docs {
		if _, twice := l.docs[name]; twice {
			return fmt.Errorf("'%s' is defined twice", name)
		}
		l.docs[name] = d
	}
	return nil
}

// describe returns "kind name" of a definition. What this generator does not
// support is refused here.
func describe(node qapischema.Node) (string, error) {
	switch n := node.(type) {
	case *qapischema.Enum:
		return "enum " + n.Name, unconditional(n.If)
	case *qapischema.Struct:
		return "struct " + n.Name, unconditional(n.If)
	case *qapischema.Union:
		return "union " + n.Name, unconditional(n.If)
	case *qapischema.Alternate:
		return "alternate " + n.Name, unconditional(n.If)
	case *qapischema.Command:
		return "command " + n.Name, unconditional(n.If)
	case *qapischema.Event:
		return "event " + n.Name, unconditional(n.If)
	}
	return "", fmt.Errorf("%T is not supported", node)
}

func unconditional(cond *qapischema.Cond) error {
	if cond != nil {
		return errors.New("'if' is not supported")
	}
	return nil
}

// resolve makes the model of the parsed definitions.
func (l *loader) resolve() error {
	for _, node := range l.nodes {
		l.declare(node)
	}
	for _, node := range l.nodes {
		if err := l.fill(node); err != nil {
			label, _ := describe(node)
			return fmt.Errorf("%s: %w", label, err)
		}
	}
	return nil
}

// declare enters a type by name.
func (l *loader) declare(node qapischema.Node) {
	switch n := node.(type) {
	case *qapischema.Enum:
		e := &enum{name: n.Name, doc: l.docs[n.Name]}
		for _, v := range n.Values {
			e.values = append(e.values, enumValue{v.Value, featureNames(v.Features)})
		}
		l.enums = append(l.enums, e)
		l.byName[n.Name] = e
	case *qapischema.Struct:
		l.declareObject(n.Name, l.docs[n.Name], featureNames(n.Features))
	case *qapischema.Union:
		l.declareObject(n.Name, l.docs[n.Name], featureNames(n.Features))
	case *qapischema.Alternate:
		a := &alternate{name: n.Name, doc: l.docs[n.Name]}
		l.alternates = append(l.alternates, a)
		l.byName[n.Name] = a
	}
}

func (l *loader) declareObject(name string, d doc, features []string) *object {
	o := &object{name: name, doc: d, features: features}
	l.objects = append(l.objects, o)
	l.byName[name] = o
	return o
}

// fill resolves what a definition refers to.
func (l *loader) fill(node qapischema.Node) (err error) {
	switch n := node.(type) {
	case *qapischema.Struct:
		o := l.byName[n.Name].(*object)
		if n.Base != "" {
			if o.base, err = l.object(n.Base); err != nil {
				return err
			}
		}
		o.members, err = l.members(n.Members)
	case *qapischema.Union:
		o := l.byName[n.Name].(*object)
		o.discriminator = n.Discriminator
		if n.Base.Name != "" {
			return errors.New("a named base of a union is not supported")
		}
		if o.members, err = l.members(n.Base.Members); err != nil {
			return err
		}
		for _, b := range n.Branches {
			typ, err := l.object(b.Type.Type)
			if err != nil {
				return err
			}
			o.branches = append(o.branches, branch{b.Name, typ})
		}
	case *qapischema.Alternate:
		a := l.byName[n.Name].(*alternate)
		for _, c := range n.Data {
			r, err := l.ref(c.Type)
			if err != nil {
				return err
			}
			a.choices = append(a.choices, member{name: c.Name, typ: r})
		}
	case *qapischema.Command:
		return l.command(n)
	case *qapischema.Event:
		return l.event(n)
	}
	return err
}

func (l *loader) command(n *qapischema.Command) (err error) {
	c := &command{name: n.Name, doc: l.docs[n.Name], features: featureNames(n.Features)}
	switch {
	case n.Data.Ref != nil:
		if c.args, err = l.object(string(*n.Data.Ref)); err != nil {
			return err
		}
	case n.Data.Embed != nil && len(n.Data.Embed.Members) > 0:
		c.args = l.declareObject(goName(n.Name)+"Arguments", c.doc, nil)
		c.args.anonymous = true
		if c.args.members, err = l.members(n.Data.Embed.Members); err != nil {
			return err
		}
	}
	if n.Returns != nil {
		r, err := l.ref(*n.Returns)
		if err != nil {
			return err
		}
		c.returns = &r
	}
	l.commands = append(l.commands, c)
	return nil
}

func (l *loader) event(n *qapischema.Event) (err error) {
	e := &event{name: n.Name, doc: l.docs[n.Name], features: featureNames(n.Features)}
	if n.Data.Selector.Ref != "" || n.Data.Boxed ||
		n.Data.Selector.Embed != nil && n.Data.Selector.Embed.Type != "" {
		return errors.New("boxed data is not supported")
	}
	if data := n.Data.Selector.Embed; data != nil {
		e.data = l.declareObject(goName(n.Name)+"Event", e.doc, nil)
		e.data.anonymous = true
		if e.data.members, err = l.members(data.Members); err != nil {
			return err
		}
	} else {
		return errors.New("an event without data is not supported")
	}
	l.events = append(l.events, e)
	return nil
}

func (l *loader) members(from []qapischema.Member) ([]member, error) {
	var to []member
	for _, m := range from {
		if m.If != nil {
			return nil, unconditional(m.If)
		}
		r, err := l.ref(m.Type)
		if err != nil {
			return nil, fmt.Errorf("member '%s': %w", m.Name, err)
		}
		to = append(to, member{m.Name, r, m.Optional, featureNames(m.Features)})
	}
	return to, nil
}

func (l *loader) object(name string) (*object, error) {
	if o, ok := l.byName[name].(*object); ok {
		return o, nil
	}
	return nil, fmt.Errorf("'%s' is not a struct or union", name)
}

func (l *loader) ref(t qapischema.TypeRef) (ref, error) {
	name, list := t.Type, false
	if t.TypeArray != "" {
		name, list = string(t.TypeArray), true
	}
	if slices.Contains(builtins, name) {
		return ref{list: list, builtin: name}, nil
	}
	if def, ok := l.byName[name]; ok {
		return ref{list: list, def: def}, nil
	}
	return ref{}, fmt.Errorf("type '%s' is not defined", name)
}

func featureNames(features []qapischema.Feature) []string {
	var names []string
	for _, f := range features {
		names = append(names, f.Name)
	}
	return names
}
