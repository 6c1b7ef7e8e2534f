// SPDX-License-Identifier: Apache-2.0

package main

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

// example is a command of the page, and what it says that is printed.
type example struct {
	line    int
	command string
	output  string
}

// examples reads the commands of a page: they stand behind "$ " in blocks of code, with their output below. The text of a here
// document belongs to its command.
func examples(t *testing.T, path string) (list []example) {
	t.Helper()
	page, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	inside, here := false, false
	number := 0
	for line := range strings.Lines(string(page)) {
		number++
		switch {
		case strings.HasPrefix(line, "```"):
			inside = !inside
		case !inside:
		case here:
			list[len(list)-1].command += line
			here = strings.TrimSpace(line) != "END"
		case strings.HasPrefix(line, "$ "):
			list = append(list, example{line: number, command: strings.TrimPrefix(line, "$ ")})
			here = strings.Contains(line, "<<'END'")
		default:
			list[len(list)-1].output += line
		}
	}
	return list
}

// pattern is what an output has to match: … is anything in a line, and a line of it any number of lines.
func pattern(output string) *regexp.Regexp {
	quoted := regexp.QuoteMeta(output)
	quoted = regexp.MustCompile(`(?m)^…\n`).ReplaceAllString(quoted, `(?:.*\n)*`)
	return regexp.MustCompile("^" + strings.ReplaceAll(quoted, "…", ".*") + "$")
}

// TestPage does what docs/client.md says, in its order, with one shell.
func TestPage(t *testing.T) {
	if testing.Short() {
		t.Skip("builds programs")
	}
	folder := shortFolder(t)
	for _, name := range []string{"blkmirror", "blkmirrord"} {
		buildProgram(t, folder, name)
	}
	work := filepath.Join(folder, "work")
	if err := os.Mkdir(work, 0o700); err != nil {
		t.Fatal(err)
	}
	list := examples(t, "../../docs/client.md")
	if len(list) < 20 {
		t.Fatalf("only %d commands found", len(list))
	}
	// Each command's output, with errors, goes to a file, and its status behind it.
	script := "cd " + work + "\ntrap 'blkmirror qmp quit >/dev/null 2>&1' EXIT\n"
	for i, e := range list {
		script += fmt.Sprintf("{\n%s} > ../out%d 2>&1\nstatus=$?; [ $status = 0 ] || echo \"[status $status]\" >> ../out%d\n", e.command, i, i)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-c", script)
	cmd.Env = append(os.Environ(), "PATH="+folder+":"+os.Getenv("PATH"))
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, text)
	}
	for i, e := range list {
		got, err := os.ReadFile(filepath.Join(folder, fmt.Sprintf("out%d", i)))
		if err != nil {
			t.Fatal(err)
		}
		if !pattern(e.output).Match(got) {
			t.Errorf("docs/client.md:%d: %s says:\n%swhich the page does not say", e.line, strings.TrimSpace(e.command), got)
		}
	}
}

// TestPageTellsExitStatuses compares the page's table with the help.
func TestPageTellsExitStatuses(t *testing.T) {
	page, err := os.ReadFile("../../docs/client.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := regexp.MustCompile(`(?m)^\| (\d+) \| (.*) \|$`).FindAllStringSubmatch(string(page), -1)
	var got strings.Builder
	got.WriteString("Exit status:")
	for _, row := range rows {
		fmt.Fprintf(&got, "\n  %3s  %s", row[1], strings.ReplaceAll(row[2], "`", ""))
	}
	if got.String() != exitHelp {
		t.Errorf("the page has\n%s\nand the help\n%s", got.String(), exitHelp)
	}
}
