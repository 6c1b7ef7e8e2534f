// SPDX-License-Identifier: Apache-2.0

// Report runs `go test` with the arguments that it is given, and prints what matters: the output of what fails, what was
// skipped and why, and one line per package as `go test` prints it.
//
//	go run .ci/report.go ./...
//
// The exit status is that of `go test`.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
)

// event is one line of `go test -json`.
type event struct {
	Action, Package, Test, Output, ImportPath string
}

// pkg is what is kept of a package until its result is known.
type pkg struct {
	lines   map[string][]string // by test; "" for the package itself
	order   []string            // tests in the order in which they first wrote
	failed  []string
	skipped map[string][]string // tests by reason
}

// place is where a test's message came from.
var place = regexp.MustCompile(`^\s+\S+\.go:\d+: `)

func main() {
	args := append([]string{"test", "-json"}, os.Args[1:]...)
	cmd := exec.Command("go", args...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "report:", err)
		os.Exit(2)
	}
	packages := map[string]*pkg{}
	in := bufio.NewScanner(out)
	in.Buffer(nil, 64<<20)
	for in.Scan() {
		var e event
		if json.Unmarshal(in.Bytes(), &e) != nil {
			fmt.Println(in.Text()) // not from a test
			continue
		}
		take(packages, e)
	}
	err = cmd.Wait()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		os.Exit(max(exit.ExitCode(), 1))
	case err != nil || in.Err() != nil:
		fmt.Fprintln(os.Stderr, "report:", errors.Join(err, in.Err()))
		os.Exit(2)
	}
}

func take(packages map[string]*pkg, e event) {
	if e.Action == "build-output" {
		fmt.Print(e.Output)
		return
	}
	p := packages[e.Package]
	if p == nil {
		p = &pkg{lines: map[string][]string{}, skipped: map[string][]string{}}
		packages[e.Package] = p
	}
	switch e.Action {
	case "output":
		if _, known := p.lines[e.Test]; !known {
			p.order = append(p.order, e.Test)
		}
		p.lines[e.Test] = append(p.lines[e.Test], e.Output)
	case "skip", "fail", "pass":
		if e.Test != "" {
			p.ended(e)
			return
		}
		p.print(e.Action == "fail")
		delete(packages, e.Package)
	}
}

// ended keeps of a test what will be printed.
func (p *pkg) ended(e event) {
	switch e.Action {
	case "fail":
		p.failed = append(p.failed, e.Test)
		return
	case "skip":
		reason := "no reason given"
		for _, line := range p.lines[e.Test] {
			if at := place.FindString(line); at != "" {
				reason = strings.TrimSpace(line[len(at):])
			}
		}
		p.skipped[reason] = append(p.skipped[reason], e.Test)
	}
	delete(p.lines, e.Test)
}

func (p *pkg) print(failed bool) {
	if failed {
		for _, test := range p.order { // those that did not end were running when the package died
			for _, line := range p.lines[test] {
				if test != "" {
					fmt.Print(line)
				}
			}
		}
	}
	reasons := make([]string, 0, len(p.skipped))
	for reason := range p.skipped {
		reasons = append(reasons, reason)
	}
	slices.Sort(reasons)
	for _, reason := range reasons {
		tests := p.skipped[reason]
		if len(tests) > 3 {
			tests = append(tests[:2:2], fmt.Sprintf("and %d more", len(tests)-2))
		}
		fmt.Printf("    skipped %s: %s\n", strings.Join(tests, ", "), reason)
	}
	for _, line := range p.lines[""] {
		if failed || !strings.HasPrefix(line, "PASS") {
			fmt.Print(line)
		}
	}
}
