// SPDX-License-Identifier: Apache-2.0

package docs

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// literals collects the texts of the source, with … for what is filled in. Texts that are added up are one.
func literals(t *testing.T) (found []string) {
	t.Helper()
	verb := regexp.MustCompile(`%[-+# 0-9.]*[a-zA-Z]`)
	var text func(e ast.Expr) (string, bool)
	text = func(e ast.Expr) (string, bool) {
		switch e := e.(type) {
		case *ast.BasicLit:
			s, err := strconv.Unquote(e.Value)
			return s, e.Kind == token.STRING && err == nil
		case *ast.BinaryExpr:
			left, ok := text(e.X)
			right, also := text(e.Y)
			return left + right, ok && also && e.Op == token.ADD
		}
		return "", false
	}
	for _, top := range []string{"block", "job", "qmp", "daemon", "cmd"} {
		err := filepath.WalkDir("../"+top, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
			if err != nil {
				return err
			}
			ast.Inspect(file, func(n ast.Node) bool {
				if e, ok := n.(ast.Expr); ok {
					if s, ok := text(e); ok {
						found = append(found, verb.ReplaceAllString(s, "…"))
						return false
					}
				}
				return true
			})
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return found
}

// Every message of docs/troubleshooting.md is in the source. A … at an end of a message is anything.
func TestMessagesExist(t *testing.T) {
	page, err := os.ReadFile("troubleshooting.md")
	if err != nil {
		t.Fatal(err)
	}
	source := literals(t)
	messages := 0
	for number, line := range strings.Split(string(page), "\n") {
		cells := strings.Split(line, " | ")
		if !strings.HasPrefix(line, "| `") || len(cells) < 3 {
			continue
		}
		for _, quoted := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(cells[0], -1) {
			messages++
			want := strings.TrimSpace(strings.Trim(strings.TrimPrefix(quoted[1], "… "), "… "))
			want = strings.TrimPrefix(want, ": ")
			if !strings.Contains(strings.Join(source, "\n"), want) {
				t.Errorf("troubleshooting.md:%d: nothing says %q", number+1, quoted[1])
			}
		}
	}
	if messages < 30 {
		t.Errorf("only %d messages found", messages)
	}
}
