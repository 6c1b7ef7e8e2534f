// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"regexp"
	"strings"
)

// definitionLine matches the beginning of a definition, which by our
// convention stands at the beginning of a line.
var definitionLine = regexp.MustCompile(`^\{\s*'(\w+)'\s*:\s*'([^']+)'`)

// doc is the documentation of one definition.
type doc struct {
	text    string
	members map[string]string
	order   []string
}

// scanned is what the text says about its definitions without being parsed:
// "kind name" in order, documentation by name, and the heading of the file.
type scanned struct {
	title       string
	definitions []string
	docs        map[string]doc
}

// scan reads the text line by line.
func scan(file, text string) (scanned, error) {
	s := scanned{docs: map[string]doc{}}
	var block []string
	inBlock := false
	pending, pendingName := doc{}, ""
	braces := 0
	for i, line := range strings.Split(text, "\n") {
		fail := func(format string, args ...any) error {
			return fmt.Errorf("%s:%d: %s", file, i+1, fmt.Sprintf(format, args...))
		}
		switch {
		case line == "##" && inBlock:
			inBlock = false
			if len(block) > 0 && strings.HasPrefix(block[0], "= ") {
				s.title = block[0][2:]
			}
			pendingName, pending = parseDoc(block)
			block = nil
			continue
		case line == "##":
			inBlock = true
			continue
		case inBlock:
			if line != "#" && !strings.HasPrefix(line, "# ") {
				return s, fail("documentation is not closed by ##")
			}
			block = append(block, strings.TrimPrefix(strings.TrimPrefix(line, "#"), " "))
			continue
		case strings.HasPrefix(line, "#") || strings.TrimSpace(line) == "":
			continue
		}
		if braces == 0 {
			found := definitionLine.FindStringSubmatch(line)
			if found == nil {
				return s, fail("expected a definition")
			}
			kind, name := found[1], found[2]
			if pendingName != name {
				return s, fail("%s '%s' has no documentation", kind, name)
			}
			if _, twice := s.docs[name]; twice {
				return s, fail("'%s' is defined twice", name)
			}
			s.definitions = append(s.definitions, kind+" "+name)
			s.docs[name] = pending
			pendingName = ""
		}
		braces += strings.Count(line, "{") - strings.Count(line, "}")
	}
	if braces != 0 || inBlock {
		return s, fmt.Errorf("%s: ends inside a definition", file)
	}
	return s, nil
}

// parseDoc takes a documentation block apart: "@name:", text, and a
// paragraph "@member: text" per member.
func parseDoc(lines []string) (string, doc) {
	d := doc{members: map[string]string{}}
	if len(lines) == 0 || !strings.HasPrefix(lines[0], "@") {
		return "", d // a heading
	}
	name := strings.TrimSuffix(lines[0][1:], ":")
	member := ""
	var text []string
	for _, line := range lines[1:] {
		if strings.HasPrefix(line, "@") {
			var rest string
			member, rest, _ = strings.Cut(line[1:], ":")
			d.order = append(d.order, member)
			d.members[member] = strings.TrimSpace(rest)
		} else if member != "" {
			if line = strings.TrimSpace(line); line != "" {
				d.members[member] += " " + line
			}
		} else {
			text = append(text, line)
		}
	}
	d.text = strings.TrimSpace(strings.Join(text, "\n"))
	return name, d
}
