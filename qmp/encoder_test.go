// SPDX-License-Identifier: Apache-2.0

package qmp

import (
	"math"
	"strings"
	"testing"
)

func TestEncoderPretty(t *testing.T) {
	e := NewEncoder(nil, true)
	e.Value(NewObject(
		Member{"return", NewObject()},
		Member{"id", []any{int64(1), []any{}, NewObject(Member{"a", nil}, Member{"b", "x"})}},
	))
	e.EndLine()
	want := strings.ReplaceAll(`{
    "return": {
    },
    "id": [
        1,
        [
        ],
        {
            "a": null,
            "b": "x"
        }
    ]
}
`, "\n", "\r\n")
	if got := string(e.Bytes()); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestEncoderValues(t *testing.T) {
	for _, c := range []struct {
		v    any
		want string
	}{
		{nil, "null"},
		{Null{}, "null"},
		{true, "true"},
		{7, "7"},
		{uint64(math.MaxUint64), "18446744073709551615"},
		{math.Inf(1), "0"},
		{math.NaN(), "0"},
		{1e-7, "1e-07"},
		{100000.25, "100000.25"},
		{"/\\\"\x00\x1f\x7f", `"/\\\"\u0000\u001F\u007F"`},
		{"bad \xff UTF-8", `"bad \uFFFD UTF-8"`},
		{"\U0010ffff", `"\uDBFF\uDFFF"`},
		{(*Object)(nil), "{}"},
		{struct {
			A []string `json:"a"`
		}{[]string{"<x>"}}, `{"a": ["<x>"]}`},
	} {
		if got := string(Encode(c.v)); got != c.want {
			t.Errorf("%#v: got %s, want %s", c.v, got, c.want)
		}
	}
}

func TestEncoderAllocates(t *testing.T) {
	e := NewEncoder(make([]byte, 0, 256), false)
	if n := testing.AllocsPerRun(100, func() {
		e.Reset()
		e.BeginObject()
		e.Key("return")
		e.BeginArray()
		e.Elem()
		e.Int(1 << 40)
		e.EndArray()
		e.Key("id")
		e.String("libvirt-7")
		e.EndObject()
		e.EndLine()
	}); n != 0 {
		t.Errorf("%v allocations per message", n)
	}
}

func TestObject(t *testing.T) {
	var o Object
	for round := range 2 {
		for i := range 3 * indexedFrom {
			o.Set(strings.Repeat("x", i), i+round)
		}
	}
	if o.Len() != 3*indexedFrom {
		t.Fatalf("%d members", o.Len())
	}
	i := 0
	for name, value := range o.All() {
		if len(name) != i || value != i+1 {
			t.Errorf("member %d is %q: %v", i, name, value)
		}
		i++
		if got, ok := o.Get(name); !ok || got != value {
			t.Errorf("Get(%q) is %v, %v", name, got, ok)
		}
	}
	if _, ok := o.Get("y"); ok {
		t.Error("found what is not there")
	}
	if _, ok := (*Object)(nil).Get("y"); ok {
		t.Error("found something in nothing")
	}
}
