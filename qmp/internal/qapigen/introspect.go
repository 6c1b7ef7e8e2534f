// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"strconv"

	"github.com/blkmirror/blkmirror/qmp"
)

// introspector makes what query-qmp-schema answers. Types are entered when
// something refers to them, under a number, so that nobody gets used to
// their names; those that nothing refers to are left out.
type introspector struct {
	entries []*qmp.Object
	numbers map[any]string // by *enum, *object, *alternate
	entered map[string]bool
	queue   []func()
}

// empty stands for the members of a command or branch that has none.
var empty = &object{}

// introspect returns the entries as a JSON array, one per line.
func introspect(m *model) []byte {
	in := introspector{numbers: map[any]string{}, entered: map[string]bool{}}
	for _, c := range m.commands {
		args, returns := empty, ref{def: empty}
		if c.args != nil {
			args = c.args
		}
		if c.returns != nil {
			returns = *c.returns
		}
		in.entry(c.name, "command", c.features,
			"arg-type", in.name(ref{def: args}), "ret-type", in.name(returns))
	}
	for _, e := range m.events {
		in.entry(e.name, "event", e.features, "arg-type", in.name(ref{def: e.data}))
	}
	for len(in.queue) > 0 {
		next := in.queue[0]
		in.queue = in.queue[1:]
		next()
	}

	var text bytes.Buffer
	for i, e := range in.entries {
		text.WriteString(map[bool]string{true: "[", false: ",\n"}[i == 0])
		text.Write(qmp.Encode(e))
	}
	text.WriteString("]\n")
	return text.Bytes()
}

// entry adds an entry of these names and values.
func (in *introspector) entry(name, metaType string, features []string, rest ...any) {
	o := qmp.NewObject(qmp.Member{Name: "name", Value: name})
	for i := 0; i < len(rest); i += 2 {
		o.Set(rest[i].(string), rest[i+1])
	}
	o.Set("meta-type", metaType)
	if len(features) > 0 {
		o.Set("features", texts(features))
	}
	in.entries = append(in.entries, o)
}

// name returns the name of a type, and sees to it that it is entered.
func (in *introspector) name(r ref) string {
	if r.list {
		elem := r
		elem.list = false
		name := "[" + in.name(elem) + "]"
		in.once(name, func() {
			in.entry(name, "array", nil, "element-type", in.name(elem))
		})
		return name
	}
	if r.def == nil {
		name, json := builtin(r.builtin)
		in.once(name, func() { in.entry(name, "builtin", nil, "json-type", json) })
		return name
	}
	name, known := in.numbers[r.def]
	if !known {
		name = strconv.Itoa(len(in.numbers))
		in.numbers[r.def] = name
		in.queue = append(in.queue, func() { in.define(name, r.def) })
	}
	return name
}

func (in *introspector) once(name string, enter func()) {
	if !in.entered[name] {
		in.entered[name] = true
		in.queue = append(in.queue, enter)
	}
}

// builtin returns the name under which a builtin type is shown, and its JSON
// type. Widths of integers are not shown.
func builtin(name string) (shown, json string) {
	switch name {
	case "str":
		return name, "string"
	case "bool":
		return name, "boolean"
	case "number", "null":
		return name, name
	case "any":
		return name, "value"
	}
	return "int", "int"
}

func (in *introspector) define(name string, def definition) {
	switch d := def.(type) {
	case *enum:
		var members, values []any
		for _, v := range d.values {
			o := qmp.NewObject(qmp.Member{Name: "name", Value: v.name})
			if len(v.features) > 0 {
				o.Set("features", texts(v.features))
			}
			members, values = append(members, o), append(values, v.name)
		}
		in.entry(name, "enum", nil, "members", members, "values", values)
	case *alternate:
		var members []any
		for _, c := range d.choices {
			members = append(members, qmp.NewObject(qmp.Member{Name: "type", Value: in.name(c.typ)}))
		}
		in.entry(name, "alternate", nil, "members", members)
	case *object:
		in.object(name, d)
	}
}

func (in *introspector) object(name string, d *object) {
	members := []any{}
	for _, mem := range d.all() {
		o := qmp.NewObject(qmp.Member{Name: "name", Value: mem.name})
		if mem.optional {
			o.Set("default", nil)
		}
		o.Set("type", in.name(mem.typ))
		if len(mem.features) > 0 {
			o.Set("features", texts(mem.features))
		}
		members = append(members, o)
	}
	rest := []any{"members", members}
	if d.discriminator != "" {
		rest = append(rest, "tag", d.discriminator, "variants", in.variants(d))
	}
	in.entry(name, "object", d.features, rest...)
}

func (in *introspector) variants(d *object) []any {
	var variants []any
	for _, mem := range d.members {
		if mem.name != d.discriminator {
			continue
		}
		for _, v := range mem.typ.def.(*enum).values {
			typ := d.branch(v.name)
			if typ == nil {
				typ = empty
			}
			variants = append(variants, qmp.NewObject(
				qmp.Member{Name: "case", Value: v.name},
				qmp.Member{Name: "type", Value: in.name(ref{def: typ})}))
		}
	}
	return variants
}

func texts(from []string) []any {
	to := make([]any, len(from))
	for i, s := range from {
		to[i] = s
	}
	return to
}
