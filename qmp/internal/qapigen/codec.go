// SPDX-License-Identifier: Apache-2.0

package main

import "fmt"

// writeCodec writes EncodeQMP and DecodeQMP of objects and alternates.
//
// The members of an object are handled by encodeMembers and decodeMembers,
// which bases and branches share with the object that they are part of.
func writeCodec(m *model, s *source) {
	for _, o := range m.objects {
		s.line("\n// EncodeQMP writes v.")
		s.line("func (v *%s) EncodeQMP(e *qmp.Encoder) {", o.name)
		s.line("e.BeginObject()\nv.encodeMembers(e)\ne.EndObject()\n}")
		s.line("\nfunc (v *%s) encodeMembers(e *qmp.Encoder) {", o.name)
		s.encodeMembers(o)
		s.line("}")
		s.line("\n// DecodeQMP fills v.")
		s.line("func (v *%s) DecodeQMP(p qmp.Param) {", o.name)
		s.line("m := p.Object()\nv.decodeMembers(&m)\nm.End()\n}")
		s.line("\nfunc (v *%s) decodeMembers(m *qmp.Members) {", o.name)
		s.decodeMembers(o)
		s.line("}")
	}
	for _, a := range m.alternates {
		s.encodeAlternate(a)
		s.decodeAlternate(a)
	}
}

func (s *source) encodeMembers(o *object) {
	if o.base != nil {
		s.line("v.%s.encodeMembers(e)", o.base.name)
	}
	for _, mem := range o.members {
		field := "v." + goName(mem.name)
		if mem.optional {
			s.line("if %s != %s {", field, mem.absent())
		}
		s.line("e.Key(%q)", mem.name)
		if mem.optional && mem.pointer() && !isStruct(mem.typ) {
			field = "*" + field
		}
		s.encodeValue(mem.typ, field)
		if mem.optional {
			s.line("}")
		}
	}
	for _, b := range o.branches {
		s.line("if v.%s == %s && v.%s != nil {", goName(o.discriminator), o.constant(b.value), goName(b.value))
		s.line("v.%s.encodeMembers(e)\n}", goName(b.value))
	}
}

// constant returns the Go constant of a value of the discriminator.
func (o *object) constant(value string) string {
	for _, mem := range o.members {
		if mem.name == o.discriminator {
			return mem.typ.def.typeName() + goName(value)
		}
	}
	panic("no discriminator")
}

// isStruct tells whether values of the type have methods of their own.
func isStruct(r ref) bool {
	_, isEnum := r.def.(*enum)
	return !r.list && r.def != nil && !isEnum
}

func (s *source) encodeValue(r ref, value string) {
	if r.list {
		elem := r
		elem.list = false
		s.line("e.BeginArray()")
		s.line("for i := range %s {\ne.Elem()", value)
		s.encodeValue(elem, value+"[i]")
		s.line("}\ne.EndArray()")
		return
	}
	switch {
	case isStruct(r):
		s.line("%s.EncodeQMP(e)", value)
	case r.def != nil:
		s.line("e.String(string(%s))", value)
	default:
		switch r.builtin {
		case "str":
			s.line("e.String(%s)", value)
		case "bool":
			s.line("e.Bool(%s)", value)
		case "number":
			s.line("e.Float(%s)", value)
		case "any":
			s.line("e.Value(%s)", value)
		case "null":
			s.line("e.Null()")
		case "uint64", "size":
			s.line("e.Uint(%s)", value)
		case "uint8", "uint16", "uint32":
			s.line("e.Uint(uint64(%s))", value)
		case "int", "int64":
			s.line("e.Int(%s)", value)
		default:
			s.line("e.Int(int64(%s))", value)
		}
	}
}

func (s *source) decodeMembers(o *object) {
	if o.base != nil {
		s.line("v.%s.decodeMembers(m)", o.base.name)
	}
	// The discriminator comes first: what else is allowed depends on it.
	for _, mem := range o.members {
		if mem.name == o.discriminator {
			s.decodeMember(mem)
		}
	}
	for _, mem := range o.members {
		if mem.name != o.discriminator {
			s.decodeMember(mem)
		}
	}
	if len(o.branches) == 0 {
		return
	}
	s.line("switch v.%s {", goName(o.discriminator))
	for _, b := range o.branches {
		s.line("case %s:", o.constant(b.value))
		s.line("v.%s = new(%s)\nv.%[1]s.decodeMembers(m)", goName(b.value), b.typ.name)
	}
	s.line("}")
}

func (s *source) decodeMember(mem member) {
	field := "v." + goName(mem.name)
	from := fmt.Sprintf("m.Required(%q)", mem.name)
	if mem.optional {
		from = fmt.Sprintf("m.Optional(%q)", mem.name)
	}
	switch {
	case mem.optional || mem.typ.list:
		s.line("if p := %s; p.Present() {", from)
		s.decodePresent(mem, field)
		s.line("}")
	case isStruct(mem.typ):
		s.line("%s.DecodeQMP(%s)", field, from)
	case mem.typ.def == nil:
		s.line("%s = %s", field, scalar(mem.typ, from))
	default:
		s.line("%s = qmp.DecodeEnum[%s](%s)", field, mem.typ.goType(), from)
	}
}

// decodePresent writes how to fill an optional field, or a list, from p.
func (s *source) decodePresent(mem member, field string) {
	r := mem.typ
	switch {
	case r.list:
		elem := r
		elem.list = false
		s.line("l := p.List()")
		s.line("%s = make(%s, l.Len())", field, r.goType())
		s.line("for i := range %s {", field)
		if isStruct(elem) {
			s.line("%s[i].DecodeQMP(l.At(i))", field)
		} else {
			s.line("%s[i] = %s", field, scalar(elem, "l.At(i)"))
		}
		s.line("}")
	case isStruct(r):
		s.line("%s = new(%s)\n%[1]s.DecodeQMP(p)", field, r.goType())
	case mem.pointer():
		s.line("%s = new(%s)", field, scalar(r, "p"))
	default:
		s.line("%s = %s", field, scalar(r, "p"))
	}
}

// scalar returns the expression for the value of a builtin or enum type.
func scalar(r ref, from string) string {
	if r.def != nil {
		return fmt.Sprintf("qmp.DecodeEnum[%s](%s)", r.goType(), from)
	}
	switch r.builtin {
	case "str":
		return from + ".Text()"
	case "bool":
		return from + ".Bool()"
	case "number":
		return from + ".Number()"
	case "size":
		return from + ".Size()"
	case "any":
		return from + ".Value()"
	case "null":
		return from + ".Null()"
	case "int", "int64":
		return from + ".Int(64)"
	case "uint64":
		return from + ".Uint(64)"
	case "uint8", "uint16", "uint32":
		return fmt.Sprintf("%s(%s.Uint(%s))", r.builtin, from, r.builtin[len("uint"):])
	case "int8", "int16", "int32":
		return fmt.Sprintf("%s(%s.Int(%s))", r.builtin, from, r.builtin[len("int"):])
	}
	panic("no scalar: " + r.builtin)
}

func (s *source) encodeAlternate(a *alternate) {
	s.line("\n// EncodeQMP writes the choice that is set.")
	s.line("func (v *%s) EncodeQMP(e *qmp.Encoder) {\nswitch {", a.name)
	for _, c := range a.choices {
		c.optional = true
		field := "v." + goName(c.name)
		s.line("case %s != %s:", field, c.absent())
		if c.pointer() && !isStruct(c.typ) {
			field = "*" + field
		}
		s.encodeValue(c.typ, field)
	}
	s.line("default:\ne.Null()\n}\n}")
}

func (s *source) decodeAlternate(a *alternate) {
	s.line("\n// DecodeQMP fills the choice that the value is.")
	s.line("func (v *%s) DecodeQMP(p qmp.Param) {\nswitch {", a.name)
	for _, c := range a.choices {
		c.optional = true
		s.line("case p.Is%s():", c.typ.jsonKind())
		s.decodePresent(c, "v."+goName(c.name))
	}
	s.line("default:\np.NoChoice(%q)\n}\n}", a.name)
}
