// SPDX-License-Identifier: Apache-2.0

package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
)

var spec = Spec{"state-dir": Value, "max-jobs": Value, "daemonize": Switch, "sandbox": List, "blockdev": Object, "nbd-server": Object,
	"chardev": Keyval}

func TestParse(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"", ""},
		{"# nothing\n---\n", ""},
		{"state-dir: /a b\nmax-jobs: 5\ndaemonize: true\n", "1 state-dir=/a b|2 max-jobs=5|3 daemonize=true"},
		{"sandbox: [/a, /b]", "1 sandbox=/a|1 sandbox=/b"},
		{"sandbox: /a", "1 sandbox=/a"},
		{"blockdev:\n- driver: file\n  x: {y: [1, 0x10, true, null, 2.5, 18446744073709551615, \"7\", on]}\n- raw,node-name=r\n",
			`2 blockdev={"driver":"file","x":{"y":[1,16,true,null,2.5,18446744073709551615,"7","on"]}}|4 blockdev=raw,node-name=r`},
		{"nbd-server: {addr: {type: unix, path: \"a\\u0001\\\"\"}}", `1 nbd-server={"addr":{"type":"unix","path":"a\u0001\""}}`},
		{"blockdev: [{when: 2001-01-01}]", `1 blockdev={"when":"2001-01-01"}`},
		{"chardev:\n- {backend: socket, path: \"a,b\", server: true, wait: false, x: {y: 3}}", "2 chardev=backend=socket,path=a,,b,server=on,wait=off,x.y=3"},
	} {
		options, err := Parse("f", []byte(c.text), spec)
		if err != nil {
			t.Errorf("%q: %v", c.text, err)
			continue
		}
		var got []string
		for _, o := range options {
			got = append(got, fmt.Sprintf("%d %s=%s", o.Line, o.Name, o.Text))
		}
		if s := strings.Join(got, "|"); s != c.want {
			t.Errorf("%q: %s, want %s", c.text, s, c.want)
		}
	}
}

func TestErrors(t *testing.T) {
	const secret = "hush"
	for _, c := range []struct{ text, want string }{
		{"\nstate_dir: " + secret, "f:2: unknown option 'state_dir'; 'state-dir' is one"},
		{"blockdevs: []", "f:1: unknown option 'blockdevs'; 'blockdev' is one"},
		{"a: 1", "f:1: unknown option 'a'"},
		{"max-jobs: 1\nmax-jobs: 2", "f:2: 'max-jobs' is given twice"},
		{"blockdev:\n- a: 1\n  b: {c: hush,\n   c: 2}", "f:4: 'c' is given twice"},
		{"state-dir: [hush]", "f:1: 'state-dir' takes one value"},
		{"state-dir: {a: hush}", "f:1: 'state-dir' expects a plain value"},
		{"state-dir:", "f:1: 'state-dir' has no value"},
		{"daemonize: hush", "f:1: 'daemonize' expects true or false"},
		{"sandbox: [{a: hush}]", "f:1: 'sandbox' expects a plain value"},
		{"blockdev: [[hush]]", "f:1: 'blockdev' expects a mapping"},
		{"blockdev: [{a: &x hush, b: *x}]", "f:1: anchors and aliases"},
		{"blockdev: [{<<: {a: hush}}]", "f:1: a key is a name"},
		{"blockdev: [{[a]: hush}]", "f:1: a key is a name"},
		{"blockdev: [{a: .inf}]", "f:1: a number that there is not in JSON"},
		{"blockdev: [{a: !!binary aHVzaA==}]", "f:1: tags"},
		{"blockdev: [{a: !hush x}]", "f:1: tags"},
		{"blockdev: [{a: !!bool \"true,\\\"b\\\": 7\"}]", "f:1: tags"}, // it would be JSON of another kind
		{"daemonize: !!bool hush", "f:1: tags"},
		{"blockdev: [{a: *hush}]", "f: yaml: anchors and aliases"},
		{"- hush", "f:1: expects options"},
		{secret, "f:1: expects options"},
		{"max-jobs: 1\n---\nmax-jobs: 2", "more than one document"},
		{"blockdev: " + strings.Repeat("[", 200) + strings.Repeat("]", 200), "f:1: more than 64 levels"},
		{"a: b: c", "f: yaml: "},
		{"chardev: [{a: [hush]}]", "f:1: 'a' expects a value"},
		{"chardev: [{\"a,b\": hush}]", "f:1: a key is a name"},
	} {
		_, err := Parse("f", []byte(c.text), spec)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: %v, want %q", c.text, err, c.want)
		} else if strings.Contains(err.Error(), secret) {
			t.Errorf("%q: a value is in the error: %v", c.text, err)
		}
	}
}

// An error about a key is told with the line of that key.
func TestExplain(t *testing.T) {
	options, err := Parse("f", []byte("blockdev:\n- driver: file\n  a:\n    b: 1\n  c: 2\n"), spec)
	if err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]string{
		"Parameter 'c' is unexpected": "f:5: blockdev: Parameter 'c' is unexpected", "'a.b' is bad": "f:4: blockdev: 'a.b' is bad",
		"'b' is bad": "f:4: blockdev: 'b' is bad", "no": "f:2: blockdev: no", "'x' or 'c'": "f:5: blockdev: 'x' or 'c'",
	} {
		if got := options[0].Explain("blockdev", errors.New(text)).Error(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func TestRead(t *testing.T) {
	path := t.TempDir() + "/f"
	if _, err := Read(path, spec); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	if err := os.WriteFile(path, []byte("state-dir: /x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if options, err := Read(path, spec); err != nil || len(options) != 1 || options[0].String() != path+":1" {
		t.Errorf("%v, %v", options, err)
	}
	if err := os.WriteFile(path, make([]byte, maxFile+1), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(path, spec); err == nil || !strings.Contains(err.Error(), "more than 1048576 bytes") {
		t.Error(err)
	}
}

// FuzzParse: whatever a file has, there is an error or there are options that the spec knows, and objects are JSON.
func FuzzParse(f *testing.F) {
	for _, seed := range []string{"state-dir: x\nblockdev: [{a: {b: [1, true, null, 2.5, \"x\"]}}, text]", "chardev: [{a: {b: true}}]",
		"a: &a [*a]", "blockdev: [{<<: {a: 1}}]", "daemonize: yes", "---\n...\n---", "blockdev: [{a: !!bool \"true,\"}]", "blockdev: !!set {a, b}", "? {a: b}\n: c", "\xff"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		if len(text) > 16<<10 {
			t.Skip("long files say nothing new")
		}
		options, err := Parse("f", text, spec)
		if err != nil {
			if !strings.HasPrefix(err.Error(), "f:") {
				t.Errorf("no place: %v", err)
			}
			return
		}
		for _, o := range options {
			kind, known := spec[o.Name]
			if !known || o.Line < 1 {
				t.Errorf("%+v", o)
			}
			if kind == Object && strings.HasPrefix(o.Text, "{") && o.keys != nil && len(o.keys) > 0 && !json.Valid([]byte(o.Text)) {
				t.Errorf("no JSON: %q", o.Text)
			}
		}
	})
}
