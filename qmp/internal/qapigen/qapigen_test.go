// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
)

// TestUpToDate checks that qmp/api is what the schema says.
func TestUpToDate(t *testing.T) {
	files, err := generate()
	if err != nil {
		t.Fatal(err)
	}
	const folder = "../../api"
	for name, want := range files {
		got, err := os.ReadFile(filepath.Join(folder, name))
		if err != nil {
			t.Error(err)
		} else if !bytes.Equal(got, want) {
			t.Errorf("%s is out of date: run 'go generate ./qmp/api'", name)
		}
	}
	old, err := filepath.Glob(filepath.Join(folder, "*_gen.*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range old {
		if files[filepath.Base(path)] == nil {
			t.Errorf("%s is not generated any more", path)
		}
	}
}

// definitions returns schema text with a documented definition each.
func definitions(texts ...string) string {
	var b strings.Builder
	for _, text := range texts {
		doc, definition, _ := strings.Cut(text, "|")
		b.WriteString("##\n")
		for line := range strings.SplitSeq(doc, ";") {
			b.WriteString("# " + line + "\n")
		}
		b.WriteString("##\n" + definition + "\n\n")
	}
	return b.String()
}

// TestRefuses checks that what the parser stops at in silence, and what is
// wrong although it parses, is an error that says where.
func TestRefuses(t *testing.T) {
	const good = "@A:;Text.;@x: a member|{ 'struct': 'A', 'data': { 'x': 'int' } }"
	for _, c := range []struct {
		name, text, want string
	}{
		{"parser stops", definitions(good, "@B:;@x: a|{ 'struct': 'B', 'data': { 'x': 'int' }, 'novelty': 1 }", "@C:;@x: a|{ 'struct': 'C', 'data': { 'x': 'int' } }"),
			"3 definitions in the text, 1 were parsed; look at 'struct B'"},
		{"condition", definitions("@B:;@x: a|{ 'struct': 'B', 'data': { 'x': 'int' }, 'if': 'CONFIG' }"), "'if' is not supported"},
		{"unknown kind", definitions("@B:|{ 'novelty': 'B' }"), "1 definitions in the text, 0 were parsed"},
		{"include", "{ 'include': 'x.json' }", "has no documentation"},
		{"no documentation", "{ 'struct': 'A', 'data': { 'x': 'int' } }", "'A' has no documentation"},
		{"open documentation", "##\n# @A:\n{ 'struct': 'A', 'data': { 'x': 'int' } }\n", "documentation is not closed"},
		{"unfinished", "##\n# @A:\n##\n{ 'struct': 'A',\n", "ends inside a definition"},
		{"twice", definitions(good, good), "defined twice"},
		{"undocumented member", definitions("@A:;Text.|{ 'struct': 'A', 'data': { 'x': 'int' } }"), "member 'x' has no documentation"},
		{"documented but missing", definitions("@A:;@x: a;@y: b|{ 'struct': 'A', 'data': { 'x': 'int' } }"), "documentation of unknown members"},
		{"undocumented value", definitions("@E:;@a: a|{ 'enum': 'E', 'data': [ 'a', 'b' ] }"), "value 'b' has no documentation"},
		{"unknown type", definitions("@A:;@x: a|{ 'struct': 'A', 'data': { 'x': 'Nope' } }"), "type 'Nope' is not defined"},
		{"unknown base", definitions("@A:;@x: a|{ 'struct': 'A', 'base': 'Nope', 'data': { 'x': 'int' } }"), "'Nope' is not a struct or union"},
		{"clash", definitions("@A:;@x-y: a;@x_y: b|{ 'struct': 'A', 'data': { 'x-y': 'int', 'x_y': 'int' } }"), "clashes in Go"},
		{"discriminator", definitions(good, "@U:;@t: a|{ 'union': 'U', 'base': { 't': 'str' }, 'discriminator': 't', 'data': { 'a': 'A' } }"), "is not a required enum"},
		{"branch", definitions(good, "@E:;@a: a|{ 'enum': 'E', 'data': [ 'a' ] }", "@U:;@t: a|{ 'union': 'U', 'base': { 't': 'E' }, 'discriminator': 't', 'data': { 'b': 'A' } }"), "branch 'b' is not a value of E"},
		{"branch member", definitions(good, "@E:;@a: a|{ 'enum': 'E', 'data': [ 'a' ] }", "@U:;@t: a;@x: b|{ 'union': 'U', 'base': { 't': 'E', 'x': 'int' }, 'discriminator': 't', 'data': { 'a': 'A' } }"), "member 'x' is a common one"},
		{"alternate", definitions("@T:;@a: a;@b: b|{ 'alternate': 'T', 'data': { 'a': 'str', 'b': 'str' } }"), "cannot be told apart"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m, err := load(fstest.MapFS{"test.json": {Data: []byte(c.text)}})
			if err == nil {
				err = m.check()
			}
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %s\n%s", err, c.want, c.text)
			}
		})
	}
}

func TestGoName(t *testing.T) {
	for name, want := range map[string]string{
		"blockdev-mirror": "BlockdevMirror", "JOB_STATUS_CHANGE": "JobStatusChange", "job-id": "JobID",
		"qmp_capabilities": "QMPCapabilities", "io_uring": "IOUring", "write_threshold": "WriteThreshold",
	} {
		if got := goName(name); got != want {
			t.Errorf("%s: got %s, want %s", name, got, want)
		}
	}
}
