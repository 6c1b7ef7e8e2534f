// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"reflect"
	"strings"
	"testing"
)

func decode(t *testing.T, text string) any {
	t.Helper()
	value, err := decodeJSON(text)
	if err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return value
}

func TestSizes(t *testing.T) {
	for text, want := range map[string]int64{
		"0": 0, "512": 512, "0x200": 512, "64K": 65536, "1M+512": 1<<20 + 512, "1G": 1 << 30, "2T": 2 << 40, "1K+1K+1": 2049,
	} {
		if got, err := parseSize(text); err != nil || got != want {
			t.Errorf("%s is %d, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "K", "-1", "1KK", "1M+", "one", "9999999T", "4611686018427387904+4611686018427387904+1"} {
		if got, err := parseSize(text); err == nil {
			t.Errorf("%q is %d", text, got)
		}
	}
	for n, want := range map[int64]string{0: "0", 511: "511", 1024: "1K", 2112 << 10: "2112K", 1 << 20: "1M", 3 << 30: "3G"} {
		if got := formatSize(n); got != want {
			t.Errorf("%d is written %s, want %s", n, got, want)
		}
	}
}

func TestDescribeRuns(t *testing.T) {
	noisy := make([]byte, 100)
	for i := range noisy {
		noisy[i] = byte(i)
	}
	for _, test := range []struct {
		data []byte
		base int64
		want string
	}{
		{nil, 0, "empty"},
		{make([]byte, 1<<20), 1 << 20, "1M,1M=0x00"},
		{[]byte("\x01\x01\x02"), 1024, "1K,2=0x01 1026,1=0x02"},
		{append(make([]byte, 9000), 0x61), 0, "0,9000=0x00 9000,1=0x61"},
		{noisy[:2], 0, "0,1=0x00 1,1=0x01"},
	} {
		if got := describeRuns(test.data, test.base); got != test.want {
			t.Errorf("runs are %s, want %s", got, test.want)
		}
	}
	if got := describeRuns(noisy[:24], 0); strings.HasSuffix(got, "...") || strings.Count(got, "=") != 24 {
		t.Errorf("24 runs are %s", got)
	}
	if got := describeRuns(noisy[:25], 0); !strings.HasSuffix(got, "23,1=0x17 ...") {
		t.Errorf("25 runs are %s", got)
	}
}

func TestSplitting(t *testing.T) {
	for text, want := range map[string][]string{
		`a  b=c`:                          {"a", "b=c"},
		`a b={"c": [1, 2]} d`:             {"a", `b={"c": [1, 2]}`, "d"},
		`a "b c" d="e \" f" g`:            {"a", `"b c"`, `d="e \" f"`, "g"},
		`a b=["x]", "y z"]`:               {"a", `b=["x]", "y z"]`},
		" \t ":                            nil,
		`x={"path": "/a b", "c": "\\"} y`: {`x={"path": "/a b", "c": "\\"}`, "y"},
	} {
		if got := splitJSONWords(text); !reflect.DeepEqual(got, want) {
			t.Errorf("%s is split into %q", text, got)
		}
	}
	for text, want := range map[string][]string{
		`--a b,c=d`:                    {"--a", "b,c=d"},
		`--blockdev '{"a": "b c"}' -x`: {"--blockdev", `{"a": "b c"}`, "-x"},
		`"a b"c \d "\"\n" ''`:          {"a bc", "d", `"\n`, ""},
	} {
		if got, err := SplitCommand(text); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s is split into %q, %v", text, got, err)
		}
	}
	for _, text := range []string{`'a`, `"a`, `a\`} {
		if got, err := SplitCommand(text); err == nil {
			t.Errorf("%s is split into %q", text, got)
		}
	}
}

func TestBuildArguments(t *testing.T) {
	got, err := buildArguments(strings.Fields(
		`a=1 size=64K b.c=x b.d.e=true status=null l.1=second l.0.k=1.50 j={"0":"kept"} neg=-1 q="null" eq=a=b empty=`))
	if err != nil {
		t.Fatal(err)
	}
	want := `{"a": 1, "b": {"c": "x", "d": {"e": true}}, "empty": "", "eq": "a=b", "j": {"0": "kept"}, ` +
		`"l": [{"k": 1.50}, "second"], "neg": -1, "q": "null", "size": 65536, "status": "null"}`
	if renderJSON(got) != want {
		t.Errorf("arguments are\n%s, want\n%s", renderJSON(got), want)
	}
	for _, bad := range []string{"word", "a=1 a.b=2"} {
		if _, err := buildArguments(strings.Fields(bad)); err == nil {
			t.Errorf("%s was accepted", bad)
		}
	}
}

func TestMask(t *testing.T) {
	value := decode(t, `{
		"timestamp": {"seconds": 1, "microseconds": 2},
		"more": {"seconds": 1, "microseconds": 2, "hours": 3},
		"version": {"qemu": {"major": 11, "minor": 1, "micro": 3}, "package": "Debian"},
		"file": "/tmp/cf-1/dst and /real/tmp/cf-1/x",
		"nodes": ["#block123", "a#block7b", "block8"], "n": 5, "nothing": null}`)
	want := `{"file": "$dir/dst and $dir/x", "more": {"hours": 3, "microseconds": 2, "seconds": 1}, "n": 5, ` +
		`"nodes": ["#block", "a#blockb", "block8"], "nothing": null, ` +
		`"timestamp": {"microseconds": "*", "seconds": "*"}, ` +
		`"version": {"package": "*", "qemu": {"major": "*", "micro": "*", "minor": "*"}}}`
	if got := renderJSON(mask(value, []string{"/real/tmp/cf-1", "/tmp/cf-1"})); got != want {
		t.Errorf("masked:\n%s, want\n%s", got, want)
	}
}

func TestDig(t *testing.T) {
	value := decode(t, `{"a": {"b": [10, {"c": "x"}]}, "d": "text"}`)
	for path, want := range map[string]string{
		"a.b.0": "10", "a.b.1.c": `"x"`, "a.b.2": "null", "a.b.x": "null", "a.b.-1": "null", "d.e": "null", "nope": "null", "d": `"text"`,
	} {
		if got := renderJSON(dig(value, path)); got != want {
			t.Errorf("%s is %s, want %s", path, got, want)
		}
	}
}

func TestAllows(t *testing.T) {
	for _, test := range []struct {
		expected, actual string
		loose, exact     bool
	}{
		{`return {}`, `return {}`, true, true},
		{`return {}`, `return {"more": 1}`, true, false},
		{`return {"a": 1}`, `return {}`, false, false},
		{`return {"a": null}`, `return {}`, false, false},
		{`return {"a": 1}`, `return {"a": 1.0}`, false, false},
		{`return {"a": 1}`, `return {"a": "1"}`, false, false},
		{`return {"a": true}`, `return {"a": 1}`, false, false},
		{`return {"a": {"b": 1}}`, `return {"a": {"b": 1, "c": 2}}`, true, false},
		{`return {"a": {}}`, `return {"a": 1}`, false, false},
		{`return {"a": "*"}`, `return {"a": [1, 2]}`, true, false},
		{`return {"a": "*"}`, `return {}`, false, false},
		{`return [1, "*"]`, `return [1, 2]`, true, false},
		{`return [1]`, `return [1, 2]`, false, false},
		{`return [{"a": 1}]`, `return [{"a": 1, "b": 2}]`, true, false},
		{`return {"error": "No space"}`, `return {"error": "disk full"}`, true, false},
		{`return {"error": "No space"}`, `return {"error": null}`, false, false},
		{`return {"error": "No space"}`, `return {}`, false, false},
		{`return {"reason": "No space"}`, `return {"reason": "disk full"}`, false, false},
		{`return []`, `message []`, false, false},
		{`return null`, `return null`, true, true},
		{`return null`, `return`, false, false},
		{`error GenericError  # one`, `error GenericError  # another`, true, true},
		{`error GenericError id=1  # one`, `error GenericError id=2  # one`, false, false},
		{`error GenericError  # one`, `error DeviceNotFound  # one`, false, false},
		{`alloc x 1M of 4M`, `alloc x 1280K of 4M`, true, true},
		{`alloc x 1280K of 4M`, `alloc x 1M of 4M`, true, true},
		{`alloc x 1M of 4M`, `alloc x 1344K of 4M`, false, false},
		{`alloc x 1M of 4M`, `alloc y 1M of 4M`, false, false},
		{`alloc x 1M of 4M`, `alloc x 1M of 5M`, false, false},
		{`write 0,1M ok`, `write 0,1M ok`, true, true},
		{`write 0,1M ok`, `write 0,1M EIO`, false, false},
	} {
		expected, actual := parseOutcome(test.expected), parseOutcome(test.actual)
		if got := expected.Allows(actual, false); got != test.loose {
			t.Errorf("%s allows %s: %v", expected, actual, got)
		}
		if got := expected.Allows(actual, true); got != test.exact {
			t.Errorf("%s allows exactly %s: %v", expected, actual, got)
		}
		if expected.String() != test.expected {
			t.Errorf("%s is written %s", test.expected, expected)
		}
	}
}

func TestFilters(t *testing.T) {
	for filters, want := range map[string]string{
		"sorted":                     `[{"id": "a", "n": {"x": 2}}, {"id": "b", "n": {"x": 1}}, {"id": "c"}]`,
		"pick=id:c,a":                `[{"id": "c"}, {"id": "a", "n": {"x": 2}}]`,
		"pick=id:none":               `[]`,
		"fields=n.x":                 `[{"n.x": 1}, {"n.x": null}, {"n.x": 2}]`,
		"mask=n":                     `[{"id": "b", "n": "*"}, {"id": "c"}, {"id": "a", "n": "*"}]`,
		"pick=id:a fields=n mask=n":  `[{"n": "*"}]`,
		"fields=id sorted mask=none": `[{"id": "a"}, {"id": "b"}, {"id": "c"}]`,
	} {
		f, err := parseFilters(strings.Fields(filters))
		if err != nil {
			t.Fatal(err)
		}
		value := decode(t, `[{"id": "b", "n": {"x": 1}}, {"id": "c"}, {"id": "a", "n": {"x": 2}}]`)
		if got, err := f.apply(value); err != nil || renderJSON(got) != want {
			t.Errorf("%s gives %s, %v; want %s", filters, renderJSON(got), err, want)
		}
	}
	if got, err := (Filters{PickKey: "a"}).apply("text"); err == nil {
		t.Errorf("picked %v from a string", got)
	}
	f := Filters{Fields: []string{"a.b"}, Mask: []string{"a.b"}}
	if got, err := f.apply(decode(t, `{"a": {"b": 1}}`)); err != nil || renderJSON(got) != `{"a.b": "*"}` {
		t.Errorf("fields of an object: %s, %v", renderJSON(got), err)
	}
}

func TestSatisfies(t *testing.T) {
	for _, test := range []struct {
		found, operator, wanted string
		want                    bool
	}{
		{"5", "=", "5", true}, {"5", "=", "6", false}, {"5", "!=", "6", true}, {"5", ">=", "5", true}, {"5", "<=", "4", false},
		{"65536", ">=", "64K", true}, {"true", "=", "true", true}, {`"ready"`, "=", "ready", true}, {`"null"`, "=", "null", true},
		{"null", "=", "null", false}, {"null", "!=", "5", false},
	} {
		got, err := satisfies(decode(t, test.found), test.operator, parseValue(test.wanted))
		if err != nil || got != test.want {
			t.Errorf("%s %s %s is %v, %v", test.found, test.operator, test.wanted, got, err)
		}
	}
	for _, operator := range []string{">=", "~"} {
		if _, err := satisfies("text", operator, parseValue("5")); err == nil {
			t.Errorf("text %s 5 makes sense", operator)
		}
	}
}
