// SPDX-License-Identifier: Apache-2.0

package qmp

import (
	"bytes"
	"fmt"
	"io"
	"strings"
)

// Mode says how arguments are taken.
type Mode uint8

const (
	// Strict takes JSON values as they are: nothing is converted, unknown
	// members and values are errors. This is what a server does.
	Strict Mode = iota
	// Keyval takes the command line: every leaf is a string, and becomes
	// what the schema wants. Unknown members and values are errors.
	Keyval
	// Lenient takes what a newer server may send: unknown members and
	// unknown enum values are no errors. This is what a client does.
	Lenient
)

// Decodable is a value that can be taken from a Param. Generated types are.
type Decodable interface {
	DecodeQMP(Param)
}

// Decode fills v from the members of an object. The error is the first one
// met, an *Error that names the parameter.
func Decode(o *Object, mode Mode, v Decodable) error {
	return DecodeValue(o, mode, v)
}

// DecodeValue fills v from any value.
func DecodeValue(value any, mode Mode, v Decodable) error {
	d := decoding{mode: mode}
	v.DecodeQMP(Param{decoding: &d, value: value, present: true, index: -1})
	if d.err != nil {
		return d.err
	}
	return nil
}

// Unmarshal fills v from JSON text, leniently.
func Unmarshal(text []byte, v Decodable) error {
	value, err := NewReader(io.MultiReader(bytes.NewReader(text), strings.NewReader("\n"))).Next()
	if err != nil {
		return err
	}
	return DecodeValue(value, Lenient, v)
}

// decoding is what one call of Decode shares between all its parameters.
type decoding struct {
	mode Mode
	err  *Error // the first; nothing counts after it
}

// Param is one value that is being checked: the arguments as a whole, a
// member, or an element. Its methods return the value in the type that the
// schema wants; if it is of another type, the first error is kept, and they
// return a zero value, so that generated code need not look at errors.
type Param struct {
	*decoding
	parent  *path
	name    string
	index   int // of an element, or -1
	value   any
	present bool
}

// path is where a parameter stands, for messages.
type path struct {
	parent *path
	name   string
	index  int
}

func (p *path) write(b *strings.Builder) {
	if p == nil {
		return
	}
	p.parent.write(b)
	switch {
	case p.index >= 0:
		fmt.Fprintf(b, "[%d]", p.index)
	case p.name != "":
		if b.Len() > 0 {
			b.WriteByte('.')
		}
		b.WriteString(p.name)
	}
}

func (p *Param) here() *path { return &path{p.parent, p.name, p.index} }

// path returns where the parameter stands, such as options[0].file.
func (p *Param) path() string {
	var b strings.Builder
	p.here().write(&b)
	return b.String()
}

// Present tells whether there is a value. An absent required parameter is
// not present, either.
func (p Param) Present() bool { return p.present && p.err == nil }

// Fail keeps an error about this parameter; a %s in format is its path.
func (p Param) Fail(format string, args ...any) {
	if p.err == nil {
		p.err = Errorf(format, append([]any{p.path()}, args...)...)
	}
}

func (p Param) expect(what string) {
	p.Fail("Invalid parameter type for '%s', expected: %s", what)
}

// Value returns the value as it is. A null is returned as Null, because nil
// means that there is none.
func (p Param) Value() any {
	if !p.Present() {
		return nil
	}
	if p.value == nil {
		return Null{}
	}
	return p.value
}

// Null takes a null.
func (p Param) Null() Null {
	if p.Present() && p.value != nil {
		p.expect("null")
	}
	return Null{}
}

// Text returns a string.
func (p Param) Text() string {
	if !p.Present() {
		return ""
	}
	s, ok := p.value.(string)
	if !ok {
		p.expect("string")
	}
	return s
}

// Bool returns a truth value. On the command line it is on, yes, true or y,
// or one of their contraries.
func (p Param) Bool() bool {
	if !p.Present() {
		return false
	}
	if p.mode == Keyval {
		switch p.Text() {
		case "on", "yes", "true", "y":
			return true
		case "off", "no", "false", "n":
		default:
			p.Fail("Parameter '%s' expects 'on' or 'off'")
		}
		return false
	}
	b, ok := p.value.(bool)
	if !ok {
		p.expect("boolean")
	}
	return b
}

// Enum returns a string that valid accepts.
func (p Param) Enum(valid func(string) bool) string {
	s := p.Text()
	if p.Present() && p.mode != Lenient && !valid(s) {
		p.Fail("Parameter '%s' does not accept value '%s'", s)
	}
	return s
}

// DecodeEnum returns a value of a generated enum type.
func DecodeEnum[T interface {
	~string
	Valid() bool
}](p Param) T {
	return T(p.Enum(func(s string) bool { return T(s).Valid() }))
}

// Object returns the members of an object. End must be called after all of
// them were asked for.
func (p Param) Object() Members {
	m := Members{decoding: p.decoding}
	if !p.Present() {
		return m
	}
	o, ok := p.value.(*Object)
	if !ok {
		p.expect("object")
		return m
	}
	m.object = o
	m.path = p.here()
	if o.Len() > len(m.few) {
		m.many = make([]bool, o.Len())
	}
	return m
}

// List returns the elements of a list.
func (p Param) List() List {
	l := List{decoding: p.decoding}
	if !p.Present() {
		return l
	}
	elems, ok := p.value.([]any)
	if !ok {
		p.expect("array")
		return l
	}
	l.elems = elems
	l.path = p.here()
	return l
}

// IsObject tells whether the value is an object: the choices of an alternate
// are told apart by such questions.
func (p Param) IsObject() bool { _, ok := p.value.(*Object); return ok && p.Present() }

// IsText tells whether the value is a string.
func (p Param) IsText() bool { _, ok := p.value.(string); return ok && p.Present() }

// IsList tells whether the value is a list.
func (p Param) IsList() bool { _, ok := p.value.([]any); return ok && p.Present() }

// IsNull tells whether the value is null.
func (p Param) IsNull() bool { return p.value == nil && p.Present() }

// NoChoice keeps an error about a value that fits no choice of an alternate.
func (p Param) NoChoice(alternate string) {
	if p.Present() {
		p.expect(alternate)
	}
}

// Members are the members of an object that is being checked.
type Members struct {
	*decoding
	object *Object
	path   *path

	// Which members were asked for: few unless there are more than that.
	few  [32]bool
	many []bool
}

// Required returns a member; it is an error if there is none.
func (m *Members) Required(name string) Param {
	p := m.Optional(name)
	if !p.present {
		p.Fail("Parameter '%s' is missing")
	}
	return p
}

// Optional returns a member, which may be absent.
func (m *Members) Optional(name string) Param {
	p := Param{decoding: m.decoding, parent: m.path, name: name, index: -1}
	if i := m.object.find(name); i >= 0 {
		p.value, p.present = m.object.members[i].Value, true
		if m.many != nil {
			m.many[i] = true
		} else {
			m.few[i] = true
		}
	}
	return p
}

// End keeps an error if there are members that nobody asked for.
func (m *Members) End() {
	if m.err != nil || m.mode == Lenient || m.object == nil {
		return
	}
	seen := m.many
	if seen == nil {
		seen = m.few[:m.object.Len()]
	}
	for i, ok := range seen {
		if !ok {
			p := Param{decoding: m.decoding, parent: m.path, name: m.object.members[i].Name, index: -1}
			p.Fail("Parameter '%s' is unexpected")
			return
		}
	}
}

// List is a list that is being checked.
type List struct {
	*decoding
	elems []any
	path  *path
}

// Len returns the number of elements.
func (l List) Len() int { return len(l.elems) }

// At returns element number i.
func (l List) At(i int) Param {
	return Param{decoding: l.decoding, parent: l.path, index: i, value: l.elems[i], present: true}
}
