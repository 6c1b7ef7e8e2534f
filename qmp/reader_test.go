// SPDX-License-Identifier: Apache-2.0

package qmp

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

// readAll returns everything that a stream yields: values as JSON, and errors
// as their text after "! ".
func readAll(t testing.TB, src io.Reader) []string {
	t.Helper()
	r := NewReader(src)
	var got []string
	for {
		v, err := r.Next()
		if malformed, ok := errors.AsType[*Error](err); ok {
			got = append(got, "! "+malformed.Desc)
			continue
		}
		if err == io.EOF {
			return got
		}
		if err != nil {
			return append(got, err.Error())
		}
		got = append(got, string(Encode(v)))
	}
}

func TestReader(t *testing.T) {
	for _, c := range []struct {
		name, in string
		want     []string
	}{
		{"empty", " \t\r\n", nil},
		{"scalars", "1 -1 \"a\" true false null 1.5\n", []string{"1", "-1", `"a"`, "true", "false", "null", "1.5"}},
		{"no newline", `{"a":1}{"b":[]}[{}]`, []string{`{"a": 1}`, `{"b": []}`, `[{}]`}},
		{"over lines", "{\n\"a\"\r\n:\t[1,\n2]\n}", []string{`{"a": [1, 2]}`}},
		{"order is kept", `{"z":1,"a":2,"m":3}`, []string{`{"z": 1, "a": 2, "m": 3}`}},
		{"single quotes", `{'a':'b"c\'d'}`, []string{`{"a": "b\"c'd"}`}},
		{"quote in double quotes", `"a\'b'c"`, []string{`"a'b'c"`}},
		{"escapes", `"\"\\\/\b\f\n\r\t\u0041\u00e4\u0000"`, []string{`"\"\\/\b\f\n\r\tA\u00E4\u0000"`}},
		{"UTF-8", `"ä€😀` + "\x7f\"", []string{`"\u00E4\u20AC\uD83D\uDE00\u007F"`}},
		{"surrogate pair", `"\ud83d\uDE00"`, []string{`"\uD83D\uDE00"`}},
		{"replacement character", "\"\uFFFD\\ufffd\"", []string{`"\uFFFD\uFFFD"`}},
		{"integers", "9223372036854775807 -9223372036854775808 18446744073709551615 -0\n",
			[]string{"9223372036854775807", "-9223372036854775808", "18446744073709551615", "0"}},
		{"large integers become floats", "18446744073709551616 -9223372036854775809\n", []string{"18446744073709552000", "-9223372036854776000"}},
		{"floats", "1.50e3 1e22 -1.5E-7 0.1\n", []string{"1500", "1e+22", "-1.5e-07", "0.1"}},
		{"float out of range", "1e400 1\n", []string{"! 1:1: JSON parse error, number out of range", "1"}},

		{"duplicate key", `{"a":1,"a":2}{}`, []string{"! 1:8: JSON parse error, duplicate key", "{}"}},
		{"trailing comma in object", `{"a":1,}{}`, []string{"! 1:8: JSON parse error, expecting string", "{}"}},
		{"trailing comma in array", `[1,]{}`, []string{"! 1:4: JSON parse error, expecting value", "{}"}},
		{"missing value", `{"a":}{}`, []string{"! 1:6: JSON parse error, expecting value", "{}"}},
		{"missing colon", `{"a" "b"}{}`, []string{"! 1:6: JSON parse error, expecting ':'", "{}"}},
		{"missing comma", `[1 2]{}`, []string{"! 1:4: JSON parse error, expecting ',' or ']'", "{}"}},
		{"numeric key", `{1:2}{}`, []string{"! 1:2: JSON parse error, expecting string", "{}"}},
		{"keyword", `{"a":tru}{}`, []string{"! 1:6: JSON parse error, invalid keyword 'tru'", "{}"}},
		{"wrong bracket", "[1}\n{}", []string{"! 1:3: JSON parse error, expecting ',' or ']'", "{}"}},
		{"closing bracket alone", "}\n{}", []string{"! 1:1: JSON parse error, expecting value", "{}"}},
		{"comment", "// x\n{}", []string{"! 1:1: JSON parse error, stray '/'", "{}"}},
		{"leading plus", "+1\n{}", []string{"! 1:1: JSON parse error, stray '+'", "{}"}},
		{"leading point", ".5\n{}", []string{"! 1:1: JSON parse error, stray '.'", "{}"}},
		{"leading zero", "01\n{}", []string{"! 1:2: JSON parse error, number with leading zero", "{}"}},
		{"no digits", "[-]\n{}", []string{"! 1:3: JSON parse error, number without digits", "{}"}},
		{"no fraction", "[1.]\n{}", []string{"! 1:4: JSON parse error, number without digits", "{}"}},
		{"interpolation", "[%s]\n{}", []string{"! 1:2: JSON parse error, stray '%'", "{}"}},
		{"BOM", "\ufeff{}", []string{"! 1:1: JSON parse error, stray '\\xef'", "{}"}},
		{"lone surrogate", `["\ud800"]` + "\n{}", []string{"! 1:9: JSON parse error, lone surrogate in string", "{}"}},
		{"second surrogate alone", `["\udc00"]` + "\n{}", []string{"! 1:9: JSON parse error, lone surrogate in string", "{}"}},
		{"pair of first surrogates", `["\ud800\ud800"]` + "\n{}", []string{"! 1:15: JSON parse error, lone surrogate in string", "{}"}},
		{"bad unicode escape", `["\u12g4"]` + "\n{}", []string{"! 1:7: JSON parse error, invalid \\u escape in string", "{}"}},
		{"unknown escape", `["\x"]` + "\n{}", []string{"! 1:4: JSON parse error, invalid escape sequence in string", "{}"}},
		{"invalid UTF-8", "[\"\x80\"]\n{}", []string{"! 1:3: JSON parse error, invalid UTF-8 sequence in string", "{}"}},
		{"cut UTF-8", "[\"\xc3a\"]\n{}", []string{"! 1:4: JSON parse error, invalid UTF-8 sequence in string", "{}"}},
		{"surrogate in UTF-8", "[\"\xed\xa0\x80\"]\n{}", []string{"! 1:4: JSON parse error, invalid UTF-8 sequence in string", "{}"}},
		{"tab in string", "[\"\t\", {\"a\": [\"b\"]}]{}", []string{"! 1:3: JSON parse error, invalid character in string", "{}"}},
		{"line end in string", "{\"a\": \"b\n{}", []string{"! 1:9: JSON parse error, invalid character in string", "{}"}},
		{"cut off", `{"a": [1`, []string{"unexpected EOF"}},
		{"cut off in string", `"a`, []string{"unexpected EOF"}},
		{"cut off in number", `{}4`, []string{"{}", "unexpected EOF"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, src := range []io.Reader{strings.NewReader(c.in), iotest.OneByteReader(strings.NewReader(c.in))} {
				if got := readAll(t, src); fmt.Sprint(got) != fmt.Sprint(c.want) {
					t.Errorf("got  %q\nwant %q", got, c.want)
				}
			}
		})
	}
}

// TestReaderRecovers checks what costs one error, and that commands after it
// are not swallowed.
func TestReaderRecovers(t *testing.T) {
	for _, c := range []struct {
		name, in string
		want     []string
	}{
		{"brackets are balanced first", `{"a": tru, "b": {"execute": [1]}} {"c":1}`,
			[]string{"! 1:7: JSON parse error, invalid keyword 'tru'", `{"c": 1}`}},
		{"line with a lost bracket", "{\"a\": [1\n{\"b\":1}\n{\"c\":1}\n",
			[]string{"! 2:1: JSON parse error, expecting ',' or ']'", `{"b": 1}`, `{"c": 1}`}},
		{"line with a lost bracket, after an error", "{\"a\" [1\n{\"b\":1}\n",
			[]string{"! 1:6: JSON parse error, expecting ':'", `{"b": 1}`}},
		{"indented lines do not count", "{\"a\" 1,\n {\"b\":1}\n}{\"c\":1}\n",
			[]string{"! 1:6: JSON parse error, expecting ':'", `{"c": 1}`}},
		{"lost quote", "{\"a: 1}\n{\"b\":1}\n",
			[]string{"! 1:8: JSON parse error, invalid character in string", `{"b": 1}`}},
		{"0xFF resets", "{\"a\": [[[ \xff{\"b\":1}",
			[]string{"! 1:11: JSON parse error, stray '\\xff'", `{"b": 1}`}},
		{"0xFF before a command", "\xff{\"b\":1}",
			[]string{"! 1:1: JSON parse error, stray '\\xff'", `{"b": 1}`}},
		{"0xFF in a string", "{\"a\": \"x\xff{\"b\":1}",
			[]string{"! 1:9: JSON parse error, invalid UTF-8 sequence in string", `{"b": 1}`}},
		{"0x1D resets", "{\"a\": \x1d{\"b\":1}",
			[]string{"! 1:7: JSON parse error, stray '\\x1d'", `{"b": 1}`}},
		{"bad token while leaving out", "{\"a\": query-version}\n{}",
			[]string{"! 1:7: JSON parse error, invalid keyword 'query'", "! 1:20: JSON parse error, expecting value", "{}"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, src := range []io.Reader{strings.NewReader(c.in), iotest.OneByteReader(strings.NewReader(c.in))} {
				if got := readAll(t, src); fmt.Sprint(got) != fmt.Sprint(c.want) {
					t.Errorf("got  %q\nwant %q", got, c.want)
				}
			}
		})
	}
}

func TestReaderLimits(t *testing.T) {
	const tokens, size = 1000, 10000 // smaller than the real ones, to save time
	for _, c := range []struct {
		name string
		in   io.Reader
		want []string
	}{
		{"depth allowed", strings.NewReader(`{"a":` + strings.Repeat("[", 1023) + strings.Repeat("]", 1023) + "}"), []string{"value"}},
		{"depth", strings.NewReader(`{"a":` + strings.Repeat("[", 1024) + strings.Repeat("]", 1024) + "} {}"),
			[]string{"! 1:1029: JSON nesting depth limit exceeded", "value"}},
		{"tokens allowed", strings.NewReader("[1" + strings.Repeat(",1", tokens/2-2) + "] {}"), []string{"value", "value"}},
		{"tokens", strings.NewReader("[1" + strings.Repeat(",1", tokens/2) + "] {}"),
			[]string{"! 1:1001: JSON token count limit exceeded", "value"}},
		{"size allowed", strings.NewReader(`["` + strings.Repeat("x", size-3) + `"] {}`), []string{"value", "value"}},
		{"size", strings.NewReader(`["` + strings.Repeat("x", size) + `"] {}`),
			[]string{"! 1:10003: JSON token size limit exceeded", "value"}},
		{"size of many tokens", strings.NewReader(`["` + strings.Repeat("x", size/2) + `","` + strings.Repeat("x", size/2) + `"] {}`),
			[]string{"! 1:10006: JSON token size limit exceeded", "value"}},
		{"size of a string alone", strings.NewReader(`"` + strings.Repeat("x", 100*size) + `" {}`),
			[]string{"! JSON token size limit exceeded", "value"}},
		{"size of an endless line", strings.NewReader(`{"a":"` + strings.Repeat("x", 100*size) + "\n{}"),
			[]string{"! JSON token size limit exceeded", "value"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := NewReader(c.in)
			if !strings.HasPrefix(c.name, "depth") {
				r.mostTokens, r.lex.most = tokens, size
			}
			var got []string
			for {
				_, err := r.Next()
				if err == io.EOF {
					break
				}
				if err == nil {
					got = append(got, "value")
				} else {
					got = append(got, "! "+err.Error())
				}
			}
			for i := range got { // where in a long string it is noticed does not matter
				if _, text, ok := strings.Cut(got[i], ": "); ok && i < len(c.want) && c.want[i] == "! "+text {
					got[i] = c.want[i]
				}
			}
			if fmt.Sprint(got) != fmt.Sprint(c.want) {
				t.Errorf("got %q, want %q", got, c.want)
			}
			if kept := cap(r.lex.collected); kept > 4*size {
				t.Errorf("%d bytes are kept", kept)
			}
		})
	}
	if r := NewReader(nil); r.mostTokens != MaxTokens || r.lex.most != MaxTokenSize {
		t.Error("the limits do not count")
	}
}

// TestReaderAllocates guards the hot path: a command must not cost more than
// its object and members.
func TestReaderAllocates(t *testing.T) {
	src := &endless{text: []byte("{\"execute\": \"query-jobs\", \"id\": \"libvirt-7\"}\n")}
	r := NewReader(src)
	if n := testing.AllocsPerRun(1000, func() {
		if _, err := r.Next(); err != nil {
			t.Fatal(err)
		}
	}); n > 5 {
		t.Errorf("%v allocations per message", n)
	}
}

// endless yields its text for ever, one whole message per read.
type endless struct{ text []byte }

func (e *endless) Read(p []byte) (int, error) { return copy(p, e.text), nil }

func FuzzReader(f *testing.F) {
	for _, seed := range []string{
		`{"execute": "query-jobs", "id": [1, -2.5e3, null]}`, "{'a': '\\u00e4'}", "{\"a\" [1\n{\"b\":1}\n",
		"\xff{\"a\": \"\xed\xa0\x80\"}", `{"a": query-version}` + "\n", "[[[[", `"\ud83d\ude00"`, "01 1. -",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		whole := readAll(t, bytes.NewReader(in))
		pieces := readAll(t, iotest.OneByteReader(bytes.NewReader(in)))
		if fmt.Sprint(whole) != fmt.Sprint(pieces) {
			t.Fatalf("at once %q\nin pieces %q", whole, pieces)
		}
		for _, text := range whole {
			if strings.HasPrefix(text, "! ") || text == io.ErrUnexpectedEOF.Error() {
				continue
			}
			// What was accepted is written as JSON that reads the same.
			if again := readAll(t, strings.NewReader(text+"\n")); len(again) != 1 || again[0] != text {
				t.Fatalf("%q became %q", text, again)
			}
		}
		// Whatever came before, a reset brings the next command through.
		after := readAll(t, io.MultiReader(bytes.NewReader(in), strings.NewReader("\xff\xff{\"execute\":\"quit\"}")))
		if len(after) == 0 || after[len(after)-1] != `{"execute": "quit"}` {
			t.Fatalf("the command after a reset was lost: %q", after)
		}
	})
}
