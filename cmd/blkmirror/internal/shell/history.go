// SPDX-License-Identifier: Apache-2.0

package shell

import (
	"bufio"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// mostLines is how many lines a history keeps.
const mostLines = 1000

// History are the lines of a user, kept in a file that nobody else can read. Not kept are lines that begin with a blank, and those
// that make objects: they may hold keys.
type History struct {
	path  string   // "" to keep none
	lines []string // oldest first
}

// LoadHistory reads a history; a file that is not there is an empty one.
func LoadHistory(path string) (*History, error) {
	h := &History{path: path}
	if path == "" {
		return h, nil
	}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return h, nil
	}
	if err != nil {
		return h, err
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		h.put(lines.Text())
	}
	return h, nil
}

func (h *History) put(line string) {
	if line == "" || len(h.lines) > 0 && h.lines[len(h.lines)-1] == line {
		return
	}
	h.lines = append(h.lines, line)
	if len(h.lines) > mostLines {
		h.lines = h.lines[len(h.lines)-mostLines:]
	}
}

// Add takes a line in. It is part of term.History.
func (h *History) Add(line string) {
	if !strings.HasPrefix(line, " ") && !strings.Contains(line, "object-add") {
		h.put(line)
	}
}

// Len is the number of lines. It is part of term.History.
func (h *History) Len() int { return len(h.lines) }

// At returns a line, 0 being the newest. It is part of term.History.
func (h *History) At(i int) string { return h.lines[len(h.lines)-1-i] }

// Save writes the history.
func (h *History) Save() error {
	if h.path == "" || len(h.lines) == 0 {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(h.path), 0o700); err != nil {
		return err
	}
	return os.WriteFile(h.path, []byte(strings.Join(h.lines, "\n")+"\n"), 0o600)
}
