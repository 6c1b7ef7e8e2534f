// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

// splitJSONWords splits at blanks outside of strings, brackets and braces, so
// that a JSON value stays one word.
func splitJSONWords(text string) []string {
	var words []string
	var word strings.Builder
	depth, quoted, escaped := 0, false, false
	for _, char := range text {
		switch {
		case char == '"' && !escaped:
			quoted = !quoted
		case quoted:
		case char == '[' || char == '{':
			depth++
		case char == ']' || char == '}':
			depth--
		case unicode.IsSpace(char) && depth == 0:
			if word.Len() > 0 {
				words = append(words, word.String())
			}
			word.Reset()
			continue
		}
		escaped = char == '\\' && !escaped
		word.WriteRune(char)
	}
	if word.Len() > 0 {
		words = append(words, word.String())
	}
	return words
}

// SplitCommand splits a command line the way a shell does: quotes group,
// a backslash takes the next character as it is. Nothing is expanded.
func SplitCommand(text string) ([]string, error) {
	var words []string
	var word strings.Builder
	var quote rune
	started, escaped := false, false
	for _, char := range text {
		switch {
		case escaped:
			if quote == '"' && char != '"' && char != '\\' {
				word.WriteByte('\\')
			}
			word.WriteRune(char)
			escaped = false
		case char == '\\' && quote != '\'':
			escaped, started = true, true
		case quote != 0 && char == quote:
			quote = 0
		case quote != 0:
			word.WriteRune(char)
		case char == '\'' || char == '"':
			quote, started = char, true
		case unicode.IsSpace(char):
			if started {
				words = append(words, word.String())
			}
			word.Reset()
			started = false
		default:
			word.WriteRune(char)
			started = true
		}
	}
	if quote != 0 || escaped {
		return nil, fmt.Errorf("unfinished quotation: %s", text)
	}
	if started {
		words = append(words, word.String())
	}
	return words, nil
}

var suffixedSize = regexp.MustCompile(`^[0-9]+[KMGT]$`)

// parseValue reads the value of KEY=VALUE: a size with a suffix, JSON, or
// else a plain string. The word null is a string too, because it is the name
// of a job status.
func parseValue(text string) any {
	if suffixedSize.MatchString(text) {
		if size, err := parseSize(text); err == nil {
			return jsonNumber(size)
		}
	}
	if text == "null" {
		return text
	}
	if value, err := decodeJSON(text); err == nil {
		return value
	}
	return text
}

// branch is an object under construction. Unlike an object that was given as
// JSON, one with only numbers for keys becomes an array.
type branch map[string]any

// buildArguments turns a=1 b.c=x l.0=y into {"a": 1, "b": {"c": "x"},
// "l": ["y"]}.
func buildArguments(words []string) (map[string]any, error) {
	root := branch{}
	for _, word := range words {
		path, value, ok := strings.Cut(word, "=")
		if !ok {
			return nil, fmt.Errorf("not KEY=VALUE: %q", word)
		}
		keys := strings.Split(path, ".")
		at := root
		for _, key := range keys[:len(keys)-1] {
			if at[key] == nil {
				at[key] = branch{}
			}
			inner, ok := at[key].(branch)
			if !ok {
				return nil, fmt.Errorf("%q goes on below a value", word)
			}
			at = inner
		}
		at[keys[len(keys)-1]] = parseValue(value)
	}
	result := make(map[string]any, len(root))
	for key, value := range root {
		result[key] = ripen(value)
	}
	return result, nil
}

// ripen makes plain objects and arrays of branches.
func ripen(value any) any {
	tree, ok := value.(branch)
	if !ok {
		return value
	}
	object := make(map[string]any, len(tree))
	var indices []int
	for key, item := range tree {
		object[key] = ripen(item)
		if index, err := strconv.Atoi(key); err == nil && index >= 0 {
			indices = append(indices, index)
		}
	}
	if len(tree) == 0 || len(indices) != len(tree) {
		return object
	}
	slices.Sort(indices)
	array := make([]any, len(indices))
	for i, index := range indices {
		array[i] = object[strconv.Itoa(index)]
	}
	return array
}
