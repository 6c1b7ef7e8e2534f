// SPDX-License-Identifier: Apache-2.0

package qmp

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"unicode/utf8"
)

// Encodable is a value that can write itself. Generated types are.
type Encodable interface {
	EncodeQMP(*Encoder)
}

// Encoder writes JSON the way QEMU does: compact with ": " and ", ", or
// indented by four; everything beyond ASCII as \uXXXX with upper-case digits.
// It appends to one buffer and never fails.
//
// Objects are written as BeginObject, then Key and a value per member, then
// EndObject; arrays as BeginArray, then Elem and a value per element, then
// EndArray.
type Encoder struct {
	buf    []byte
	pretty bool
	depth  int
	empty  bool // nothing was written yet into the innermost object or array
}

// NewEncoder returns an encoder that appends to buf.
func NewEncoder(buf []byte, pretty bool) *Encoder {
	return &Encoder{buf: buf, pretty: pretty}
}

// Encode returns a value as compact JSON.
func Encode(v any) []byte {
	e := Encoder{}
	e.Value(v)
	return e.buf
}

// keptBuffer is the largest buffer that Reset keeps.
const keptBuffer = 1 << 20

// Reset starts over with an empty buffer, reusing the memory unless it is much.
func (e *Encoder) Reset() {
	if cap(e.buf) > keptBuffer {
		e.buf = nil
	}
	e.buf, e.depth = e.buf[:0], 0
}

// Bytes returns what was written. It is valid until the next call.
func (e *Encoder) Bytes() []byte { return e.buf }

// EndLine ends a message.
func (e *Encoder) EndLine() { e.buf = append(e.buf, '\r', '\n') }

// BeginObject begins an object.
func (e *Encoder) BeginObject() { e.begin('{') }

// EndObject ends an object.
func (e *Encoder) EndObject() { e.end('}') }

// BeginArray begins an array.
func (e *Encoder) BeginArray() { e.begin('[') }

// EndArray ends an array.
func (e *Encoder) EndArray() { e.end(']') }

// Key begins a member of an object. Names are ASCII without quotes.
func (e *Encoder) Key(name string) {
	e.Elem()
	e.buf = append(e.buf, '"')
	e.buf = append(e.buf, name...)
	e.buf = append(e.buf, '"', ':', ' ')
}

// Elem begins an element of an array.
func (e *Encoder) Elem() {
	if !e.empty {
		e.buf = append(e.buf, ',')
		if !e.pretty {
			e.buf = append(e.buf, ' ')
		}
	}
	e.empty = false
	e.newline()
}

func (e *Encoder) begin(bracket byte) {
	e.buf = append(e.buf, bracket)
	e.depth++
	e.empty = true
}

func (e *Encoder) end(bracket byte) {
	e.depth--
	e.empty = false
	e.newline()
	e.buf = append(e.buf, bracket)
}

func (e *Encoder) newline() {
	if !e.pretty {
		return
	}
	e.EndLine()
	for range e.depth {
		e.buf = append(e.buf, "    "...)
	}
}

// Null writes null.
func (e *Encoder) Null() { e.buf = append(e.buf, "null"...) }

// Bool writes true or false.
func (e *Encoder) Bool(v bool) { e.buf = strconv.AppendBool(e.buf, v) }

// Int writes an integer.
func (e *Encoder) Int(v int64) { e.buf = strconv.AppendInt(e.buf, v, 10) }

// Uint writes an integer.
func (e *Encoder) Uint(v uint64) { e.buf = strconv.AppendUint(e.buf, v, 10) }

// Float writes a number: 0 if it is one that JSON cannot express.
func (e *Encoder) Float(v float64) {
	if math.IsNaN(v) || math.IsInf(v, 0) {
		v = 0
	}
	format := byte('f')
	if a := math.Abs(v); a != 0 && (a < 1e-6 || a >= 1e21) {
		format = 'e'
	}
	e.buf = strconv.AppendFloat(e.buf, v, format, -1, 64)
	if v == 0 && math.Signbit(v) {
		e.buf = append(e.buf, ".0"...) // "-0" is the integer 0
	}
}

// String writes a string.
func (e *Encoder) String(s string) {
	e.buf = append(e.buf, '"')
	plain := 0 // start of what needs no escape and is not yet copied
	for i := 0; i < len(s); {
		c := s[i]
		if c >= ' ' && c < 0x7f && c != '"' && c != '\\' {
			i++
			continue
		}
		e.buf = append(e.buf, s[plain:i]...)
		r, size := rune(c), 1
		if c >= utf8.RuneSelf {
			r, size = utf8.DecodeRuneInString(s[i:])
		}
		e.escape(r)
		i += size
		plain = i
	}
	e.buf = append(e.buf, s[plain:]...)
	e.buf = append(e.buf, '"')
}

func (e *Encoder) escape(r rune) {
	switch r {
	case '"', '\\':
		e.buf = append(e.buf, '\\', byte(r))
	case '\b':
		e.buf = append(e.buf, '\\', 'b')
	case '\f':
		e.buf = append(e.buf, '\\', 'f')
	case '\n':
		e.buf = append(e.buf, '\\', 'n')
	case '\r':
		e.buf = append(e.buf, '\\', 'r')
	case '\t':
		e.buf = append(e.buf, '\\', 't')
	default:
		if r > 0xffff {
			r -= 0x10000
			e.unit(0xd800 + r>>10)
			r = 0xdc00 + r&0x3ff
		}
		e.unit(r)
	}
}

func (e *Encoder) unit(r rune) {
	const hex = "0123456789ABCDEF"
	e.buf = append(e.buf, '\\', 'u', hex[r>>12&15], hex[r>>8&15], hex[r>>4&15], hex[r&15])
}

// Raw writes text that is JSON already.
func (e *Encoder) Raw(text []byte) { e.buf = append(e.buf, text...) }

// Value writes a value of the value model, an Encodable, or anything that
// encoding/json can marshal.
func (e *Encoder) Value(v any) {
	switch v := v.(type) {
	case nil:
		e.Null()
	case bool:
		e.Bool(v)
	case int64:
		e.Int(v)
	case int:
		e.Int(int64(v))
	case uint64:
		e.Uint(v)
	case float64:
		e.Float(v)
	case string:
		e.String(v)
	case []any:
		e.BeginArray()
		for _, elem := range v {
			e.Elem()
			e.Value(elem)
		}
		e.EndArray()
	case *Object:
		e.object(v)
	case Encodable:
		v.EncodeQMP(e)
	default:
		e.marshal(v)
	}
}

func (e *Encoder) object(o *Object) {
	e.BeginObject()
	for name, value := range o.All() {
		e.Elem()
		e.String(name)
		e.buf = append(e.buf, ':', ' ')
		e.Value(value)
	}
	e.EndObject()
}

// marshal writes what only encoding/json knows how to write. Such values come
// from our own code, so failing is a bug.
func (e *Encoder) marshal(v any) {
	text, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("qmp: cannot encode %T: %v", v, err))
	}
	value, err := NewReader(bytes.NewReader(append(text, '\n'))).Next()
	if err != nil {
		panic(fmt.Sprintf("qmp: cannot encode %T: %v", v, err))
	}
	e.Value(value)
}

// Null is an explicit null in a place where nil means that there is nothing.
type Null struct{}

// EncodeQMP writes null.
func (Null) EncodeQMP(e *Encoder) { e.Null() }

// MarshalJSON returns null.
func (Null) MarshalJSON() ([]byte, error) { return []byte("null"), nil }
