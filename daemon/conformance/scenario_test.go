// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"os"
	"path"
	"reflect"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	got, err := Parse("group/name", `# What it is about
# more words

image src 4M
  0,1M=1
daemon
# in between
@b wait JOB_STATUS_CHANGE status=null | mask=len,offset unordered
< JOB_STATUS_CHANGE {"id": "m"}
< no more events
send {"execute": "x", "id": 1}
< error GenericError id=1  # words that do not count
qmp query-jobs | pick=id:a,b fields=id,a.b.0 sorted full exact
< return null
`)
	if err != nil {
		t.Fatal(err)
	}
	want := &Scenario{Name: "group/name", Intent: "What it is about", Steps: []Step{
		{Line: 4, Text: "image src 4M 0,1M=1", Monitor: "main", Verb: "image", Rest: "src 4M 0,1M=1"},
		{Line: 6, Text: "daemon", Monitor: "main", Verb: "daemon"},
		{Line: 8, Text: "@b wait JOB_STATUS_CHANGE status=null | mask=len,offset unordered",
			Monitor: "b", Verb: "wait", Rest: "JOB_STATUS_CHANGE status=null",
			Filters: Filters{Mask: []string{"len", "offset"}, Unordered: true},
			Expected: []Outcome{
				{Words: "JOB_STATUS_CHANGE", Value: map[string]any{"id": "m"}, HasValue: true},
				{Words: "no more events"},
			}},
		{Line: 11, Text: `send {"execute": "x", "id": 1}`, Monitor: "main", Verb: "send", Rest: `{"execute": "x", "id": 1}`,
			Expected: []Outcome{{Words: "error GenericError id=1", Comment: "words that do not count"}}},
		{Line: 13, Text: "qmp query-jobs | pick=id:a,b fields=id,a.b.0 sorted full exact",
			Monitor: "main", Verb: "qmp", Rest: "query-jobs",
			Filters: Filters{PickKey: "id", PickValues: []string{"a", "b"}, Fields: []string{"id", "a.b.0"},
				Sorted: true, Full: true, Exact: true},
			Expected: []Outcome{{Words: "return", HasValue: true}}},
	}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("parsed as\n%+v, want\n%+v", got, want)
	}
}

func TestParseErrors(t *testing.T) {
	for text, complaint := range map[string]string{
		"":                         "no steps",
		"# only words":             "no steps",
		"< return {}":              "x:1: outcome or continuation without a step",
		"  continued":              "x:1: outcome or continuation without a step",
		"daemon\n< a\n  continued": "x:3: continuation behind an outcome",
		"daemon\nfly away":         `x:2: unknown step "fly"`,
		"qmp a | loud":             `x:1: unknown filter "loud"`,
		"qmp a | sorted=yes":       `x:1: unknown filter "sorted=yes"`,
		"qmp a | fields":           `x:1: unknown filter "fields"`,
		"qmp a | pick=b":           `x:1: filter is not pick=KEY:VALUE,VALUE: "pick=b"`,
		"image a 1M | exact":       `x:1: step "image" takes neither a monitor nor filters`,
		"@b image a 1M":            `x:1: step "image" takes neither a monitor nor filters`,
	} {
		_, err := Parse("x", text)
		if err == nil || !strings.Contains(err.Error(), complaint) {
			t.Errorf("%q: error is %v, want %s", text, err, complaint)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("image a 1M\n< b {}\n  c")
	f.Add("@b wait E a=1 | mask=x pick=a:b")
	f.Fuzz(func(t *testing.T, text string) {
		s, err := Parse("x", text)
		if err != nil {
			return
		}
		for _, step := range s.Steps {
			if _, err := buildArguments(splitJSONWords(step.Rest)); err == nil && len(step.Expected) > 0 {
				_ = step.Expected[0].String()
			}
			_, _ = SplitCommand(step.Rest)
		}
	})
}

// Every row of the table is needed, and says something.
func TestLeftOut(t *testing.T) {
	scenarios, err := Load(os.DirFS("scenarios"))
	if err != nil {
		t.Fatal(err)
	}
	used := map[string]bool{}
	for _, s := range scenarios {
		for _, row := range leftOut {
			if match, err := path.Match(row.pattern, s.Name); err != nil || row.reason == "" {
				t.Errorf("row %q: %v", row.pattern, err)
			} else if match {
				used[row.pattern] = true
			}
		}
		if s.Intent == "" {
			t.Errorf("%s does not say what it is about", s.Name)
		}
	}
	for _, row := range leftOut {
		if !used[row.pattern] {
			t.Errorf("no scenario is called %s", row.pattern)
		}
	}
}
