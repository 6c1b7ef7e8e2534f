// SPDX-License-Identifier: Apache-2.0

package shell

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// Schema is what query-qmp-schema answers, for completing and explaining commands.
type Schema struct {
	commands map[string]Entity
	types    map[string]Entity
}

// Entity is one element of that answer, as encoding/json fills it.
type Entity struct {
	Name     string
	MetaType string `json:"meta-type"`
	ArgType  string `json:"arg-type"`
	JSONType string `json:"json-type"`
	Element  string `json:"element-type"`
	Members  []member
	Tag      string
	Variants []struct{ Case, Type string }
}

type member struct {
	Name    string
	Type    string
	Default json.RawMessage // null for what may be left out, nothing for what may not
}

func (m *member) optional() bool { return m.Default != nil }

// NewSchema puts the elements in order.
func NewSchema(elements []Entity) *Schema {
	s := &Schema{commands: map[string]Entity{}, types: map[string]Entity{}}
	for _, e := range elements {
		switch e.MetaType {
		case "command":
			s.commands[e.Name] = e
		case "event":
		default:
			s.types[e.Name] = e
		}
	}
	return s
}

// Commands are the names of all commands, in order.
func (s *Schema) Commands() []string {
	var names []string
	for name := range s.commands {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// members are those of a type, with those of the variant that given chooses. Of an alternate they are those of its objects.
func (s *Schema) members(name string, given func(tag string) string) []member {
	t := s.types[name]
	switch t.MetaType {
	case "object":
		list := slices.Clone(t.Members)
		if t.Tag != "" {
			chosen := given(t.Tag)
			for _, v := range t.Variants {
				if v.Case == chosen {
					list = append(list, s.members(v.Type, given)...)
				}
			}
		}
		return list
	case "alternate":
		var list []member
		for _, m := range t.Members {
			list = append(list, s.members(m.Type, given)...)
		}
		return list
	}
	return nil
}

// values are what a type may be, if that is a short list.
func (s *Schema) values(name string) []string {
	t := s.types[name]
	switch {
	case t.MetaType == "enum":
		var list []string
		for _, m := range t.Members {
			list = append(list, m.Name)
		}
		return list
	case t.JSONType == "boolean":
		return []string{"false", "true"}
	case t.MetaType == "alternate":
		var list []string
		for _, m := range t.Members {
			list = append(list, s.values(m.Type)...)
		}
		return list
	}
	return nil
}

// describe is a type in words.
func (s *Schema) describe(name string) string {
	t := s.types[name]
	switch t.MetaType {
	case "builtin":
		return t.JSONType
	case "enum":
		return strings.Join(s.values(name), "|")
	case "array":
		return "list of " + s.describe(t.Element)
	case "alternate":
		var list []string
		for _, m := range t.Members {
			list = append(list, s.describe(m.Type))
		}
		return strings.Join(list, " or ")
	}
	return t.MetaType
}

// Help explains the arguments of a command; ok is false if there is no such command.
func (s *Schema) Help(command string) (text string, ok bool) {
	c, ok := s.commands[command]
	if !ok {
		return "", false
	}
	var b strings.Builder
	b.WriteString(command + "\n")
	root := s.types[c.ArgType]
	for _, m := range s.members(c.ArgType, func(string) string { return "" }) {
		name := m.Name
		if m.optional() {
			name = "[" + name + "]"
		}
		fmt.Fprintf(&b, "  %-26s %s\n", name, s.describe(m.Type))
	}
	for _, v := range root.Variants {
		var names []string
		for _, m := range s.members(v.Type, func(string) string { return "" }) {
			names = append(names, m.Name)
		}
		if names != nil {
			fmt.Fprintf(&b, "  with %s=%s: %s\n", root.Tag, v.Case, strings.Join(names, " "))
		}
	}
	return b.String(), true
}
