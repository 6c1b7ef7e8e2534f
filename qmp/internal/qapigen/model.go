// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"slices"
)

// model is the schema with its names resolved.
type model struct {
	enums      []*enum
	objects    []*object // structs, unions, arguments and data of events
	alternates []*alternate
	commands   []*command
	events     []*event
	parts      []part

	byName map[string]definition
}

// definition is something that a type reference can name.
type definition interface{ typeName() string }

type enum struct {
	name   string
	doc    doc
	values []enumValue
}

type enumValue struct {
	name     string
	features []string
}

// object is a struct or a union. A union has a discriminator and branches.
type object struct {
	name          string
	doc           doc
	base          *object
	members       []member
	discriminator string
	branches      []branch
	features      []string
	anonymous     bool // made here for the arguments of a command or the data of an event
}

type member struct {
	name     string
	typ      ref
	optional bool
	features []string
}

type branch struct {
	value string
	typ   *object
}

// ref is a use of a type: a builtin, an enum, an object, an alternate; or a
// list of one.
type ref struct {
	list    bool
	builtin string
	def     definition
}

type alternate struct {
	name    string
	doc     doc
	choices []member
}

type command struct {
	name     string
	doc      doc
	args     *object // nil for none
	returns  *ref
	features []string
}

type event struct {
	name     string
	doc      doc
	data     *object // nil for none
	features []string
}

func (e *enum) typeName() string      { return e.name }
func (o *object) typeName() string    { return o.name }
func (a *alternate) typeName() string { return a.name }

// all returns the members of an object with those of its bases.
func (o *object) all() []member {
	if o.base == nil {
		return o.members
	}
	return append(slices.Clip(o.base.all()), o.members...)
}

// branch returns the type for a value of the discriminator, if there is one.
func (o *object) branch(value string) *object {
	for _, b := range o.branches {
		if b.value == value {
			return b.typ
		}
	}
	return nil
}

// check finds what is wrong with a schema whose names are resolved.
func (m *model) check() error {
	for _, e := range m.enums {
		names := map[string]bool{}
		for _, v := range e.values {
			if goName := goName(v.name); names[goName] {
				return fmt.Errorf("enum %s: value '%s' clashes in Go", e.name, v.name)
			} else {
				names[goName] = true
			}
			if e.doc.members[v.name] == "" {
				return fmt.Errorf("enum %s: value '%s' has no documentation", e.name, v.name)
			}
		}
		if len(e.doc.members) != len(e.values) {
			return fmt.Errorf("enum %s: documentation of unknown values: %v", e.name, e.doc.order)
		}
	}
	for _, o := range m.objects {
		if err := o.check(); err != nil {
			return fmt.Errorf("%s: %w", o.name, err)
		}
	}
	for _, a := range m.alternates {
		kinds := map[string]bool{}
		for _, c := range a.choices {
			if k := c.typ.jsonKind(); kinds[k] || k == "" {
				return fmt.Errorf("alternate %s: choice '%s' cannot be told apart", a.name, c.name)
			} else {
				kinds[k] = true
			}
		}
	}
	return nil
}

func (o *object) check() error {
	names := map[string]bool{}
	own := 0
	for _, mem := range o.all() {
		if names[goName(mem.name)] {
			return fmt.Errorf("member '%s' clashes in Go", mem.name)
		}
		names[goName(mem.name)] = true
	}
	for _, mem := range o.members {
		if o.doc.members[mem.name] == "" {
			return fmt.Errorf("member '%s' has no documentation", mem.name)
		}
		own++
	}
	if len(o.doc.members) != own {
		return fmt.Errorf("documentation of unknown members: %v", o.doc.order)
	}
	if o.discriminator == "" {
		return nil
	}
	tag := slices.IndexFunc(o.members, func(m member) bool { return m.name == o.discriminator })
	if tag < 0 {
		return fmt.Errorf("discriminator '%s' is not a member", o.discriminator)
	}
	values, ok := o.members[tag].typ.def.(*enum)
	if !ok || o.members[tag].optional {
		return fmt.Errorf("discriminator '%s' is not a required enum", o.discriminator)
	}
	for _, b := range o.branches {
		if !slices.ContainsFunc(values.values, func(v enumValue) bool { return v.name == b.value }) {
			return fmt.Errorf("branch '%s' is not a value of %s", b.value, values.name)
		}
		if names[goName(b.value)] {
			return fmt.Errorf("branch '%s' clashes with a member in Go", b.value)
		}
		names[goName(b.value)] = true
		if b.typ.discriminator != "" {
			return fmt.Errorf("branch '%s' is a union, which is not supported", b.value)
		}
		// On the wire the members of a branch stand beside the common ones.
		for _, mem := range b.typ.all() {
			if slices.ContainsFunc(o.all(), func(m member) bool { return m.name == mem.name }) {
				return fmt.Errorf("branch '%s': member '%s' is a common one, too", b.value, mem.name)
			}
		}
	}
	return nil
}

// jsonKind returns the JSON type of a choice of an alternate, as the methods
// of qmp.Param call it, or "" if such a choice is not supported.
func (r ref) jsonKind() string {
	if r.list {
		return "List"
	}
	switch r.def.(type) {
	case *object:
		return "Object"
	case *enum:
		return "Text"
	}
	switch r.builtin {
	case "str":
		return "Text"
	case "null":
		return "Null"
	}
	return ""
}
