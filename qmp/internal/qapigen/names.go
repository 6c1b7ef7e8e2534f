// SPDX-License-Identifier: Apache-2.0

package main

import "strings"

// initialisms are words that Go writes in capitals.
var initialisms = map[string]string{
	"aio": "AIO", "bps": "BPS", "cid": "CID", "id": "ID", "io": "IO", "iops": "IOPS", "ipv4": "IPv4",
	"ipv6": "IPv6", "nbd": "NBD", "ns": "NS", "oob": "OOB",
	"qemu": "QEMU", "qmp": "QMP", "qom": "QOM", "tls": "TLS", "uri": "URI",
}

// goName returns the exported Go name for a name of the schema.
func goName(name string) string {
	if strings.ToUpper(name) == name {
		name = strings.ToLower(name)
	}
	var b strings.Builder
	for word := range strings.FieldsFuncSeq(name, func(r rune) bool { return r == '-' || r == '_' || r == '.' }) {
		if upper, ok := initialisms[strings.ToLower(word)]; ok {
			b.WriteString(upper)
		} else {
			b.WriteString(strings.ToUpper(word[:1]) + word[1:])
		}
	}
	return b.String()
}

// goBuiltin returns the Go type of a builtin type.
func goBuiltin(name string) string {
	switch name {
	case "str":
		return "string"
	case "number":
		return "float64"
	case "int":
		return "int64"
	case "size":
		return "uint64"
	case "null":
		return "qmp.Null"
	}
	return name // bool, int8 … uint64, any
}

// goType returns the Go type of a value that is there.
func (r ref) goType() string {
	name := goBuiltin(r.builtin)
	if r.def != nil {
		name = r.def.typeName()
	}
	if r.list {
		return "[]" + name
	}
	return name
}

// goField returns the Go type of a member. An optional one is a pointer,
// unless nil or "" can say that it is absent.
func (m member) goField() string {
	if m.optional && m.pointer() {
		return "*" + m.typ.goType()
	}
	return m.typ.goType()
}

func (m member) pointer() bool {
	_, isEnum := m.typ.def.(*enum)
	return !m.typ.list && !isEnum && m.typ.builtin != "any"
}

// absent returns the value of the field of an absent optional member.
func (m member) absent() string {
	if _, isEnum := m.typ.def.(*enum); isEnum && !m.typ.list {
		return `""`
	}
	return "nil"
}
