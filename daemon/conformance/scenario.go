// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"
)

// Scenario is a parsed scenario file.
type Scenario struct {
	Name   string // path below the scenarios' folder, without the suffix
	Intent string // the first comment
	Steps  []Step
}

// Step is one step and its recorded outcome.
type Step struct {
	Line     int    // where it starts in its file
	Text     string // as it stands there, continuation lines joined
	Monitor  string // the monitor it talks to
	Verb     string
	Rest     string // what follows the verb, up to the filters
	Filters  Filters
	Expected []Outcome
}

// Parse reads a scenario. A step may be continued on lines that start with a
// blank; a line that starts with '<' is an outcome of the step above it.
func Parse(name, text string) (*Scenario, error) {
	s := &Scenario{Name: name}
	for i, line := range strings.Split(text, "\n") {
		line = strings.TrimSuffix(line, "\r")
		if err := s.addLine(i+1, line); err != nil {
			return nil, fmt.Errorf("%s:%d: %w", name, i+1, err)
		}
	}
	for i := range s.Steps {
		step := &s.Steps[i]
		if err := step.parse(); err != nil {
			return nil, fmt.Errorf("%s:%d: %w", name, step.Line, err)
		}
	}
	if len(s.Steps) == 0 {
		return nil, fmt.Errorf("%s: no steps", name)
	}
	return s, nil
}

func (s *Scenario) addLine(number int, line string) error {
	content := strings.TrimSpace(line)
	switch {
	case content == "":
		return nil
	case line[0] == '#':
		if s.Intent == "" && len(s.Steps) == 0 {
			s.Intent = strings.TrimSpace(strings.TrimLeft(line, "#"))
		}
		return nil
	case line[0] != '<' && line[0] != ' ' && line[0] != '\t':
		s.Steps = append(s.Steps, Step{Line: number, Text: content})
		return nil
	case len(s.Steps) == 0:
		return errors.New("outcome or continuation without a step")
	}
	last := &s.Steps[len(s.Steps)-1]
	if line[0] == '<' {
		last.Expected = append(last.Expected, parseOutcome(strings.TrimSpace(line[1:])))
		return nil
	}
	if len(last.Expected) > 0 {
		return errors.New("continuation behind an outcome")
	}
	last.Text += " " + content
	return nil
}

func (s *Step) parse() (err error) {
	body, filters, _ := strings.Cut(s.Text, " | ")
	if s.Filters, err = parseFilters(strings.Fields(filters)); err != nil {
		return err
	}
	s.Monitor = mainMonitor
	named := strings.HasPrefix(body, "@")
	if named {
		s.Monitor, body, _ = strings.Cut(body[1:], " ")
	}
	s.Verb, s.Rest, _ = strings.Cut(body, " ")
	if _, ok := monitorSteps[s.Verb]; ok {
		return nil
	}
	if _, ok := plainSteps[s.Verb]; !ok {
		return fmt.Errorf("unknown step %q", s.Verb)
	}
	if named || filters != "" {
		return fmt.Errorf("step %q takes neither a monitor nor filters", s.Verb)
	}
	return nil
}

// Load parses all scenarios below a folder, in the order of their names.
func Load(folder fs.FS) ([]*Scenario, error) {
	var all []*Scenario
	err := fs.WalkDir(folder, ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || path.Ext(name) != ".scn" {
			return err
		}
		text, err := fs.ReadFile(folder, name)
		if err != nil {
			return err
		}
		s, err := Parse(strings.TrimSuffix(name, ".scn"), string(text))
		all = append(all, s)
		return err
	})
	return all, err
}
