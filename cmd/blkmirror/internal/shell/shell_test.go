// SPDX-License-Identifier: Apache-2.0

package shell

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/blkmirror/blkmirror/qmp/api"
)

func TestSplit(t *testing.T) {
	for line, want := range map[string]string{
		"":                               `[]`,
		"  # nothing":                    `[]`,
		"a b=1  c#d # e":                 `["a" "b=1" "c#d"]`,
		`a 'b "c' "d 'e" f\ g`:           `["a" "b \"c" "d 'e" "f g"]`,
		`a "b\"c\d" '' x''y`:             `["a" "b\"c\\d" "" "xy"]`,
		`  {"execute": "a b"}  `:         `["{\"execute\": \"a b\"}"]`,
		"a\tb\r\n":                       `["a" "b"]`,
		`a "b`:                           `error`,
		`a 'b\`:                          `error`,
		`a b\`:                           `error`,
		`options={'driver':'file'} b=[]`: `["options={driver:file}" "b=[]"]`,
	} {
		words, err := Split(line)
		got := fmt.Sprintf("%q", words)
		if err != nil {
			got = "error"
		}
		if got != want {
			t.Errorf("%q: %s, want %s", line, got, want)
		}
	}
}

// ours is the schema of our own daemon.
func ours(t testing.TB) *Schema {
	t.Helper()
	answer, err := api.Introspection{}.QueryQMPSchema(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(answer)
	if err != nil {
		t.Fatal(err)
	}
	var elements []Entity
	if err := json.Unmarshal(text, &elements); err != nil {
		t.Fatal(err)
	}
	return NewSchema(elements)
}

func TestComplete(t *testing.T) {
	s := ours(t)
	for line, want := range map[string]string{
		"job-p":                              "job-pause",
		"ex":                                 "exit",
		"help job-p":                         "job-pause",
		"job-pause ":                         "id=",
		"job-pause id=m ":                    "",
		"nosuch ":                            "",
		"block-job-set-speed s":              "speed=",
		"blockdev-mirror sync=f":             "sync=full",
		"blockdev-mirror auto-finalize=":     "auto-finalize=false auto-finalize=true",
		"blockdev-mirror nosuch=":            "",
		"blockdev-mirror device.":            "",
		"blockdev-add driver=n":              "driver=nbd driver=null-aio driver=null-co",
		"blockdev-add driver=null-co read-z": "read-zeroes=",
		"blockdev-add read-z":                "", // not of every driver
		"blockdev-add driver=raw file.dri":   "file.driver=",
		"blockdev-add driver=raw file":       "file. file=",
		"blockdev-add driver=raw file.driver=file file.filen":    "file.filename=",
		"blockdev-add file.driver=file driver=raw file.driver=h": "file.driver=host_device",
		"nbd-server-start addr.type=unix addr.data.pa":           "addr.data.path=",
		`{"execute": "job-p`: "",
		"job-pause 'i":       "",
		"job-pause 'id=m' ":  "",
		"# job-p":            "",
	} {
		if _, got := s.Complete(line, "exit"); strings.Join(got, " ") != want {
			t.Errorf("%q: %q, want %q", line, got, want)
		}
	}
	if _, all := s.Complete(""); len(all) < 50 {
		t.Errorf("only %d commands", len(all))
	}
}

func TestExtend(t *testing.T) {
	for _, c := range []struct{ line, word, candidates, want string }{
		{"job-p", "job-p", "job-pause", "job-pause "},
		{"job-pause ", "", "id=", "job-pause id="},
		{"a q", "q", "query-block query-blocks", "a query-block"},
		{"a x", "x", "", "a x"},
	} {
		if got := Extend(c.line, c.word, strings.Fields(c.candidates)); got != c.want {
			t.Errorf("%q: %q, want %q", c.line, got, c.want)
		}
	}
}

func TestHelp(t *testing.T) {
	s := ours(t)
	text, ok := s.Help("block-job-cancel")
	if want := "block-job-cancel\n  device                     string\n  [force]                    boolean\n"; !ok || text != want {
		t.Errorf("%q, want %q", text, want)
	}
	if text, _ := s.Help("blockdev-add"); !strings.Contains(text, "[discard]                  ignore|unmap\n") || !strings.Contains(text, "  with driver=nbd: ") {
		t.Error(text)
	}
	if _, ok := s.Help("nosuch"); ok {
		t.Error("help for nothing")
	}
	for _, name := range s.Commands() {
		if _, ok := s.Help(name); !ok {
			t.Errorf("no help for %s", name)
		}
	}
}

func TestHistory(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a", "history")
	h, err := LoadHistory(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"one", "two", "two", " blank", "object-add qom-type=secret", ""} {
		h.Add(line)
	}
	if h.Len() != 2 || h.At(0) != "two" || h.At(1) != "one" {
		t.Errorf("%q", h.lines)
	}
	for i := range 2 * mostLines {
		h.Add(fmt.Sprint(i))
	}
	if err := h.Save(); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	if h, err = LoadHistory(path); err != nil || h.Len() != mostLines || h.At(0) != fmt.Sprint(2*mostLines-1) {
		t.Errorf("%d lines, %v", h.Len(), err)
	}
	none, err := LoadHistory("")
	if err != nil {
		t.Fatal(err)
	}
	none.Add("x")
	if err := none.Save(); err != nil {
		t.Error(err)
	}
}

// FuzzComplete checks that no line brings completion down, and that what it offers fits.
func FuzzComplete(f *testing.F) {
	s := ours(f)
	for _, line := range []string{"", "blockdev-add driver=raw file.driver=file file.", "{", "a '", "job-pause id=", "transaction actions.", "x\\"} {
		f.Add(line)
	}
	f.Fuzz(func(t *testing.T, line string) {
		word, candidates := s.Complete(line, "exit")
		for _, c := range candidates {
			if !strings.HasPrefix(c, word) || !strings.HasSuffix(line, word) {
				t.Errorf("%q: %q for %q", line, c, word)
			}
		}
		Extend(line, word, candidates)
		_, _ = Split(line)
	})
}
