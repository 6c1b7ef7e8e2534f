// SPDX-License-Identifier: Apache-2.0

// Package docs tests the documents: what they tell to type is typed, and what they say that is printed is compared. It has nothing but tests.
package docs

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

var programs string // folder of the client and the daemon

func TestMain(m *testing.M) { os.Exit(runAll(m)) }

func runAll(m *testing.M) int {
	var err error
	if programs, err = os.MkdirTemp("", "docs-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(programs)
	build := exec.Command("go", "build", "-trimpath", "-o", programs+"/", "../cmd/blkmirror", "../cmd/blkmirrord",
		"./examples/embed", "./examples/goqemu")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "cannot build the programs: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// command is one of a page, and what the page says that it prints.
type command struct {
	line   int
	text   string
	output string
}

var hereDocument = regexp.MustCompile(`<<'?END'?\n$`)

// commands reads those of a page: they stand behind "$ " in blocks of code, with their output below. A line that ends in \, and the
// text of a here document up to END, belong to the command.
func commands(t *testing.T, page string) (list []command) {
	t.Helper()
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	inside, here, more := false, false, false
	number := 0
	for line := range strings.Lines(string(text)) {
		number++
		switch {
		case strings.HasPrefix(line, "```"):
			inside = !inside
		case !inside:
		case here || more:
			list[len(list)-1].text += line
			here = here && line != "END\n"
			more = !here && strings.HasSuffix(line, "\\\n")
		case strings.HasPrefix(line, "$ "):
			list = append(list, command{line: number, text: strings.TrimPrefix(line, "$ ")})
			here = hereDocument.MatchString(line)
			more = !here && strings.HasSuffix(line, "\\\n")
		case len(list) > 0:
			list[len(list)-1].output += line
		}
	}
	return list
}

// pattern is what an output has to match: … is anything in a line, and a line of it any number of lines.
func pattern(output string) *regexp.Regexp {
	quoted := regexp.MustCompile(`(?m)^…\n`).ReplaceAllString(regexp.QuoteMeta(output), `(?:.*\n)*`)
	return regexp.MustCompile("^" + strings.ReplaceAll(quoted, "…", ".*") + "$")
}

// link is one of Markdown.
var link = regexp.MustCompile(`\]\(([^) ]+)\)`)

// needed finds the programs that a page says that it needs: <!-- needs: NAME... -->
var needed = regexp.MustCompile(`<!-- needs: (.*) -->`)

// TestPages does what the pages say, each in a folder and a shell of its own.
func TestPages(t *testing.T) {
	if testing.Short() {
		t.Skip("builds programs")
	}
	pages, err := filepath.Glob("howto/*.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, page := range append(pages, "tutorial.md", "go-qemu.md") {
		t.Run(page, func(t *testing.T) {
			t.Parallel()
			text, err := os.ReadFile(page)
			if err != nil {
				t.Fatal(err)
			}
			list := commands(t, page)
			if len(list) == 0 {
				t.Skip("the page has no commands")
			}
			if needs := needed.FindSubmatch(text); needs != nil {
				for _, program := range strings.Fields(string(needs[1])) {
					if _, err := exec.LookPath(program); err != nil {
						t.Skipf("%s is not installed", program)
					}
				}
			}
			do(t, page, list)
		})
	}
}

// do runs the commands of a page, and compares. A daemon that the page forgets is ended: the page says where its process id is.
func do(t *testing.T, page string, list []command) {
	folder, err := os.MkdirTemp("", "page-") // short, for the paths of sockets
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(folder)
	work := filepath.Join(folder, "work")
	if err := os.Mkdir(work, 0o700); err != nil {
		t.Fatal(err)
	}
	// Each command's output, with errors, goes to a file, and its status behind it. What the shell says of its jobs is left out.
	script := "cd " + work + "\ntrap 'left=$(cat *.pid 2>/dev/null) && kill -9 $left 2>/dev/null; kill $(jobs -p) 2>/dev/null; wait' EXIT\n"
	for i, c := range list {
		script += fmt.Sprintf("{\n%s} > ../out%d 2>&1\nstatus=$?; [ $status = 0 ] || echo \"[status $status]\" >> ../out%d\n", c.text, i, i)
	}
	script += "for i in {1..100}; do left=; for p in $(cat *.pid 2>/dev/null); do kill -0 $p 2>/dev/null && left=$p; done; " +
		"[ \"$left\" ] || exit 0; sleep 0.1; done\necho \"daemons are left: $left\"\n"
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-c", script)
	cmd.Env = append(os.Environ(), "PATH="+programs+":"+os.Getenv("PATH"), "LC_ALL=C.UTF-8")
	cmd.WaitDelay = 5 * time.Second
	text, err := cmd.CombinedOutput()
	if err != nil || strings.Contains(string(text), "daemons are left") {
		t.Errorf("%v: %s", err, text)
	}
	for i, c := range list {
		got, err := os.ReadFile(filepath.Join(folder, fmt.Sprintf("out%d", i)))
		if err != nil {
			t.Errorf("%s:%d: was not run: %v", page, c.line, err)
			return
		}
		if !pattern(c.output).Match(got) {
			t.Errorf("%s:%d: %s says:\n%swhich the page does not say", page, c.line, strings.TrimSpace(c.text), got)
		}
	}
}
