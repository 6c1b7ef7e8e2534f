// SPDX-License-Identifier: Apache-2.0

package shell

import (
	"slices"
	"strings"
)

// Complete tells what the last word of a line may become. more are words that may begin a line besides commands. A whole message
// is not completed, nor is a word with quotes in it.
func (s *Schema) Complete(line string, more ...string) (word string, candidates []string) {
	if IsMessage(line) {
		return "", nil
	}
	words, open := split(line)
	if open {
		return "", nil
	}
	if line == "" || strings.HasSuffix(line, " ") {
		words = append(words, "")
	}
	if len(words) == 0 { // a comment
		return "", nil
	}
	word = words[len(words)-1]
	if !strings.HasSuffix(line, word) {
		return "", nil // quoted
	}
	switch {
	case len(words) == 1:
		candidates = append(s.Commands(), more...)
		slices.Sort(candidates)
	case len(words) == 2 && words[0] == "help":
		candidates = s.Commands()
	default:
		candidates = s.arguments(words)
	}
	candidates = slices.DeleteFunc(candidates, func(c string) bool { return !strings.HasPrefix(c, word) })
	return word, slices.Compact(candidates)
}

// arguments are what the last of words may become: KEY=, KEY. and KEY=VALUE.
func (s *Schema) arguments(words []string) (list []string) {
	given := map[string]string{}
	for _, w := range words[1 : len(words)-1] {
		key, value, _ := strings.Cut(w, "=")
		given[key] = value
	}
	path, _, hasValue := strings.Cut(words[len(words)-1], "=")
	names := strings.Split(path, ".")
	at, prefix := s.commands[words[0]].ArgType, ""
	for i, name := range names {
		members := s.members(at, func(tag string) string { return given[prefix+tag] })
		last := i == len(names)-1
		if last && !hasValue {
			for _, m := range members {
				list = append(list, s.key(prefix, m, given)...)
			}
			slices.Sort(list)
			return list
		}
		found := slices.IndexFunc(members, func(m member) bool { return m.Name == name })
		if found < 0 {
			return nil
		}
		at = members[found].Type
		if last {
			for _, v := range s.values(at) {
				list = append(list, path+"="+v)
			}
			return list
		}
		prefix += name + "."
	}
	return nil
}

// key is how a member is written: as an object, a plain value, or both. What is given already is not offered again.
func (s *Schema) key(prefix string, m member, given map[string]string) (list []string) {
	name := prefix + m.Name
	if _, twice := given[name]; twice {
		return nil
	}
	kinds := []string{m.Type}
	if t := s.types[m.Type]; t.MetaType == "alternate" {
		kinds = nil
		for _, of := range t.Members {
			kinds = append(kinds, of.Type)
		}
	}
	object, plain := false, false
	for _, k := range kinds {
		if s.types[k].MetaType == "object" {
			object = true
		} else {
			plain = true
		}
	}
	if object {
		list = append(list, name+".")
	}
	if plain {
		list = append(list, name+"=")
	}
	return list
}

// Extend is what Tab makes of a line: what all candidates have in common, and a blank behind the only one if nothing can follow it
// in the same word.
func Extend(line, word string, candidates []string) string {
	if len(candidates) == 0 {
		return line
	}
	common := candidates[0]
	for _, c := range candidates[1:] {
		for !strings.HasPrefix(c, common) {
			common = common[:len(common)-1]
		}
	}
	if len(candidates) == 1 && !strings.HasSuffix(common, "=") && !strings.HasSuffix(common, ".") {
		common += " "
	}
	return strings.TrimSuffix(line, word) + common
}
