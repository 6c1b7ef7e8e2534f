// SPDX-License-Identifier: Apache-2.0

package qmp

import (
	"math"
	"strings"
	"testing"
)

// parse returns a value from JSON text.
func parse(t *testing.T, text string) any {
	t.Helper()
	v, err := NewReader(strings.NewReader(text + "\n")).Next()
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// probe decodes one member "x" of an object with a function.
type probe func(p Param) any

func (f probe) decode(t *testing.T, value any, mode Mode) (got any, err error) {
	d := probing{f: f}
	err = Decode(NewObject(Member{"x", value}), mode, &d)
	return d.got, err
}

type probing struct {
	f   probe
	got any
}

func (d *probing) DecodeQMP(p Param) {
	m := p.Object()
	d.got = d.f(m.Required("x"))
	m.End()
}

var probes = map[string]probe{
	"str":    func(p Param) any { return p.Text() },
	"bool":   func(p Param) any { return p.Bool() },
	"int":    func(p Param) any { return p.Int(64) },
	"int8":   func(p Param) any { return p.Int(8) },
	"uint32": func(p Param) any { return p.Uint(32) },
	"uint64": func(p Param) any { return p.Uint(64) },
	"size":   func(p Param) any { return p.Size() },
	"number": func(p Param) any { return p.Number() },
}

func TestParamStrict(t *testing.T) {
	for _, c := range []struct {
		typ, in string
		want    any // or an error's text
	}{
		{"str", `"a"`, "a"},
		{"str", `1`, "! Invalid parameter type for 'x', expected: string"},
		{"str", `null`, "! Invalid parameter type for 'x', expected: string"},
		{"bool", `true`, true},
		{"bool", `1`, "! Invalid parameter type for 'x', expected: boolean"},
		{"bool", `"on"`, "! Invalid parameter type for 'x', expected: boolean"},
		{"int", `-9223372036854775808`, int64(math.MinInt64)},
		{"int", `9223372036854775808`, "! Invalid parameter type for 'x', expected: integer"},
		{"int", `1.0`, "! Invalid parameter type for 'x', expected: integer"},
		{"int", `1e3`, "! Invalid parameter type for 'x', expected: integer"},
		{"int", `"5"`, "! Invalid parameter type for 'x', expected: integer"},
		{"int8", `-128`, int64(-128)},
		{"int8", `128`, "! Parameter 'x' expects int8_t"},
		{"uint32", `4294967295`, uint64(math.MaxUint32)},
		{"uint32", `4294967296`, "! Parameter 'x' expects uint32_t"},
		{"uint32", `-1`, "! Parameter 'x' expects uint32_t"},
		{"uint64", `18446744073709551615`, uint64(math.MaxUint64)},
		{"uint64", `-1`, "! Parameter 'x' expects uint64_t"},
		{"uint64", `18446744073709551616`, "! Invalid parameter type for 'x', expected: integer"},
		{"size", `"1M"`, "! Invalid parameter type for 'x', expected: integer"},
		{"size", `512`, uint64(512)},
		{"number", `1.5`, 1.5},
		{"number", `2`, 2.0},
		{"number", `"2"`, "! Invalid parameter type for 'x', expected: number"},
	} {
		got, err := probes[c.typ].decode(t, parse(t, c.in), Strict)
		if err != nil {
			got = "! " + err.Error()
		}
		if got != c.want {
			t.Errorf("%s %s: got %v, want %v", c.typ, c.in, got, c.want)
		}
	}
}

func TestParamKeyval(t *testing.T) {
	for _, c := range []struct {
		typ, in string
		want    any
	}{
		{"str", "1", "1"},
		{"bool", "on", true},
		{"bool", "yes", true},
		{"bool", "true", true},
		{"bool", "off", false},
		{"bool", "no", false},
		{"bool", "false", false},
		{"bool", "1", "! Parameter 'x' expects 'on' or 'off'"},
		{"int", "-5", int64(-5)},
		{"int", "0x10", int64(16)},
		{"int", "1M", "! Parameter 'x' expects integer"},
		{"int", "", "! Parameter 'x' expects integer"},
		{"int", "1_000", "! Parameter 'x' expects integer"},
		{"size", "1_000", "! Parameter 'x' expects a size value representable as a 64-bit integer"},
		{"uint32", "4294967296", "! Parameter 'x' expects uint32_t"},
		{"uint32", "-1", "! Parameter 'x' expects integer"},
		{"size", "0x1000", uint64(4096)},
		{"size", "512", uint64(512)},
		{"size", "64k", uint64(65536)},
		{"size", "1.5G", uint64(3 << 29)},
		{"size", "2T", uint64(2 << 40)},
		{"size", "7B", uint64(7)},
		{"size", "15E", uint64(15 << 60)},
		{"size", "16E", "! Parameter 'x' expects a size value representable as a 64-bit integer"},
		{"size", "-1", "! Parameter 'x' expects a size value representable as a 64-bit integer"},
		{"size", "1e3", "! Parameter 'x' expects a size value representable as a 64-bit integer"},
		{"size", "K", "! Parameter 'x' expects a size value representable as a 64-bit integer"},
		{"size", ".", "! Parameter 'x' expects a size value representable as a 64-bit integer"},
		{"number", "1.5", 1.5},
		{"number", "inf", "! Parameter 'x' expects a number"},
	} {
		got, err := probes[c.typ].decode(t, c.in, Keyval)
		if err != nil {
			got = "! " + err.Error()
		}
		if got != c.want {
			t.Errorf("%s %q: got %v, want %v", c.typ, c.in, got, c.want)
		}
	}
	if _, err := probes["str"].decode(t, NewObject(), Keyval); err == nil {
		t.Error("an object was taken for a string")
	}
}

// TestMembersMany checks an object with more members than are kept track of
// without allocating.
func TestMembersMany(t *testing.T) {
	o := NewObject()
	for i := range 100 {
		o.Set("m"+strings.Repeat("x", i), "v")
	}
	for _, leaveOut := range []int{-1, 0, 77, 99} {
		err := Decode(o, Strict, &taker{leaveOut})
		if (err != nil) != (leaveOut >= 0) {
			t.Errorf("without %d: %v", leaveOut, err)
		}
		if err := Decode(o, Lenient, &taker{leaveOut}); err != nil {
			t.Errorf("leniently without %d: %v", leaveOut, err)
		}
	}
}

// taker asks for all members but one.
type taker struct{ leaveOut int }

func (d *taker) DecodeQMP(p Param) {
	m := p.Object()
	for i := range 100 {
		if i != d.leaveOut {
			m.Required("m" + strings.Repeat("x", i)).Text()
		}
	}
	m.End()
}
