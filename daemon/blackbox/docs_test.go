// SPDX-License-Identifier: Apache-2.0

package blackbox

import (
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// table reads the rows of the tables of a document that begin under a heading: the cells by the first of them.
func table(t *testing.T, document, from, to string) map[string][]string {
	t.Helper()
	text, err := os.ReadFile("../../docs/" + document)
	must(t, err)
	_, part, found := strings.Cut(string(text), from+"\n")
	if !found {
		t.Fatalf("%s has no %q", document, from)
	}
	part, _, _ = strings.Cut(part, to+"\n")
	rows := map[string][]string{}
	for line := range strings.Lines(part) {
		if line = strings.TrimSpace(line); strings.HasPrefix(line, "| ") {
			cells := strings.Split(strings.Trim(line, "|"), "|")
			for i := range cells {
				cells[i] = strings.TrimSpace(cells[i])
			}
			rows[cells[0]] = cells[1:]
		}
	}
	return rows
}

// docs/compatibility.md says of every command and event whether it is there, and says it as the daemon does.
func TestCompatibilityIsTrue(t *testing.T) {
	d := start(t)
	var schema []entity
	must(t, d.query("query-qmp-schema", nil, &schema))
	for kind, headings := range map[string][2]string{"command": {"## Commands", "## Events"}, "event": {"## Events", "## The mirror"}} {
		rows := table(t, "compatibility.md", headings[0], headings[1])
		delete(rows, kind)
		for _, e := range schema {
			if e.MetaType != kind {
				continue
			}
			if cells, there := rows[e.Name]; !there || cells[0] != "same" && cells[0] != "better" && !strings.Contains(cells[1], "never sent") {
				t.Errorf("%s %s is there, and docs/compatibility.md says %q", kind, e.Name, cells)
			}
			delete(rows, e.Name)
		}
		for name, cells := range rows {
			if cells[0] != "no" {
				t.Errorf("%s %s is not there, and docs/compatibility.md says %q", kind, name, cells)
			}
		}
	}
}

// Scenarios that docs name are there.
func TestScenariosOfDocsExist(t *testing.T) {
	text, err := os.ReadFile("../../docs/compatibility.md")
	must(t, err)
	for _, name := range regexp.MustCompile(`better/[a-z-]+\b`).FindAllString(string(text), -1) {
		found, err := os.ReadDir("../conformance/scenarios/better")
		must(t, err)
		if !slices.ContainsFunc(found, func(e os.DirEntry) bool {
			return strings.HasPrefix("better/"+e.Name(), strings.TrimSuffix(name, "-"))
		}) {
			t.Errorf("there is no scenario %s", name)
		}
	}
}

// docs/jobs.md has the tables of job/status.go.
func TestJobTablesAreThoseOfTheCode(t *testing.T) {
	parsed, err := parser.ParseFile(token.NewFileSet(), "../../job/status.go", nil, 0)
	must(t, err)
	values := map[string]*ast.CompositeLit{}
	names := map[string][]string{} // in the order of the constants
	for _, declaration := range parsed.Decls {
		general, ok := declaration.(*ast.GenDecl)
		if !ok {
			continue
		}
		kind := ""
		for _, spec := range general.Specs {
			value, ok := spec.(*ast.ValueSpec)
			if !ok {
				continue
			}
			if list, ok := first(value.Values).(*ast.CompositeLit); ok {
				values[value.Names[0].Name] = list
			}
			if general.Tok == token.CONST {
				if kind == "" {
					kind = value.Type.(*ast.Ident).Name
				}
				names[kind] = append(names[kind], value.Names[0].Name)
			}
		}
	}
	texts := func(kind, list string) map[string]string { // of the constants
		m := map[string]string{}
		for i, e := range values[list].Elts {
			m[names[kind][i]] = strings.Trim(e.(*ast.BasicLit).Value, `"`)
		}
		return m
	}
	states, verbs := texts("Status", "statusNames"), texts("Verb", "verbNames")
	rows := table(t, "jobs.md", "# Jobs", "## What the verbs do")
	compare := func(list string, keys map[string]string) {
		seen := map[string]bool{}
		for _, e := range values[list].Elts {
			pair := e.(*ast.KeyValueExpr)
			var code []string
			lit, ok := pair.Value.(*ast.CompositeLit)
			if !ok {
				lit = values[pair.Value.(*ast.Ident).Name]
			}
			for _, s := range lit.Elts {
				code = append(code, states[s.(*ast.Ident).Name])
			}
			key := keys[pair.Key.(*ast.Ident).Name]
			seen[key] = true
			cells := rows[key]
			if len(cells) != 2 || cells[1] != strings.Join(code, ", ") {
				t.Errorf("%s: docs/jobs.md says %q, job/status.go %q", key, cells, code)
			}
		}
		for _, key := range slices.Sorted(maps.Values(keys)) {
			if !seen[key] && (len(rows[key]) != 2 || rows[key][1] != "") {
				t.Errorf("%s: docs/jobs.md says %q, job/status.go nothing", key, rows[key])
			}
		}
	}
	compare("transitions", states)
	compare("verbStates", verbs)
}

func first(list []ast.Expr) ast.Expr {
	if len(list) == 0 {
		return nil
	}
	return list[0]
}
