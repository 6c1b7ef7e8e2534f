// SPDX-License-Identifier: Apache-2.0

package main

import (
	"regexp"
	"slices"
	"strings"
)

// part is a file of the schema: its heading, and its definitions in their order.
type part struct {
	title  string
	labels []string // "kind name"
}

// reference returns the page that has the schema for people.
func reference(m *model) []byte {
	r := referencer{commands: map[string]*command{}, events: map[string]*event{}, model: m}
	for _, c := range m.commands {
		r.commands[c.name] = c
	}
	for _, e := range m.events {
		r.events[e.name] = e
	}
	r.line("# QMP reference\n\n<!-- SPDX-License-Identifier: Apache-2.0 -->\n<!-- Made from qmp/schema by `go generate ./qmp/api`. Change it there. -->")
	r.line("\nThe commands, events and types of `blkmirrord`. [protocol.md](../protocol.md) tells how they go over the wire, in which order, and how " +
		"arguments are checked; [compatibility.md](../compatibility.md) compares them with qemu-storage-daemon's, of which they have names, " +
		"types and defaults. The client's manual pages (`man blkmirror`, `make man`) and [client.md](../client.md) have the same for people at a terminal: " +
		"`blkmirror qmp COMMAND NAME=VALUE...` executes any command of this page.\n")
	r.line("What is marked as an *addition* QEMU does not have. Names that begin with `x-` may still change. There is no schema older than this one, " +
		"so nothing is marked with a version. Members of a type that have no *optional* must be given, or are always there.\n")
	r.line("Every command may fail with an error of class `GenericError`, whose text is for people: [troubleshooting.md](../troubleshooting.md) has many of them. " +
		"An unknown command is `CommandNotFound`; `block-job-*` with an id that is no block job's is `DeviceNotActive`.\n")
	r.index()
	for _, p := range m.parts {
		r.line("\n## %s", p.title)
		for _, kind := range []string{"command", "event", ""} {
			for _, label := range p.labels {
				of, name, _ := strings.Cut(label, " ")
				switch {
				case of == kind && of == "command":
					r.command(r.commands[name])
				case of == kind && of == "event":
					r.event(r.events[name])
				case kind == "" && of != "command" && of != "event":
					r.typ(m.byName[name])
				}
			}
		}
	}
	return r.Bytes()
}

type referencer struct {
	source
	model    *model
	commands map[string]*command
	events   map[string]*event
}

// index lists commands and events by the part that they stand in.
func (r *referencer) index() {
	r.line("| | commands | events |\n|---|---|---|")
	for _, p := range r.model.parts {
		names := map[string][]string{}
		for _, label := range p.labels {
			kind, name, _ := strings.Cut(label, " ")
			names[kind] = append(names[kind], link(name))
		}
		if len(names["command"])+len(names["event"]) > 0 {
			r.line("| [%s](#%s) | %s | %s |", p.title, anchor(p.title), strings.Join(names["command"], ", "), strings.Join(names["event"], ", "))
		}
	}
}

func (r *referencer) command(c *command) {
	r.head(c.name, "command", c.doc, c.features)
	if c.args != nil {
		r.members("argument", c.args)
	}
	if c.returns != nil {
		r.line("\nReturns %s.", c.returns.shown())
	}
}

func (r *referencer) event(e *event) {
	r.head(e.name, "event", e.doc, e.features)
	r.members("member", e.data)
}

func (r *referencer) typ(def definition) {
	switch d := def.(type) {
	case *enum:
		r.head(d.name, "values", d.doc, nil)
		r.line("\n| value | |\n|---|---|")
		for _, v := range d.values {
			r.line("| `%s` | %s |", v.name, cell(d.doc.members[v.name], v.features))
		}
	case *object:
		r.head(d.name, "object", d.doc, d.features)
		r.members("member", d)
		if d.discriminator == "" {
			return
		}
		r.line("\nFurther members, by the value of `%s`:\n\n| `%s` | members of |\n|---|---|", d.discriminator, d.discriminator)
		for _, b := range d.branches {
			r.line("| `%s` | %s |", b.value, link(b.typ.name))
		}
	case *alternate:
		r.head(d.name, "one of several types", d.doc, nil)
		r.line("\n| type | |\n|---|---|")
		for _, c := range d.choices {
			r.line("| %s | %s |", c.typ.shown(), cell(d.doc.members[c.name], c.features))
		}
	}
}

func (r *referencer) head(name, kind string, d doc, features []string) {
	if slices.Contains(features, "deprecated") {
		kind += ", deprecated"
	}
	if strings.HasPrefix(name, "x-") {
		kind += ", may change"
	}
	r.line("\n### %s\n\n*%s.* %s", name, kind, prose(d.text))
}

// members writes the table of an object's own members, and names its base.
func (r *referencer) members(word string, o *object) {
	if o.base != nil {
		r.line("\nHas the members of %s, and:", link(o.base.name))
	}
	if len(o.members) == 0 {
		return
	}
	r.line("\n| %s | type | |\n|---|---|---|", word)
	for _, m := range o.members {
		typ := m.typ.shown()
		if m.optional {
			typ += ", optional"
		}
		r.line("| `%s` | %s | %s |", m.name, typ, cell(o.doc.members[m.name], m.features))
	}
}

// shown is a use of a type, with a link to it.
func (t ref) shown() string {
	name := t.builtin
	if t.def != nil {
		name = link(t.def.typeName())
	}
	if t.list {
		return "list of " + name
	}
	return name
}

func link(name string) string { return "[" + name + "](#" + anchor(name) + ")" }

// anchor is what GitHub makes of a heading.
func anchor(heading string) string { return strings.ReplaceAll(strings.ToLower(heading), " ", "-") }

var mention = regexp.MustCompile(`@([a-z][a-z0-9_-]*)`)

// prose is documentation as Markdown.
func prose(text string) string {
	text = strings.NewReplacer("<", "&lt;", "*", `\*`).Replace(text)
	return mention.ReplaceAllString(text, "`$1`")
}

func cell(text string, features []string) string {
	text = strings.ReplaceAll(prose(text), "|", `\|`)
	if slices.Contains(features, "deprecated") {
		text += " (deprecated)"
	}
	return text
}
