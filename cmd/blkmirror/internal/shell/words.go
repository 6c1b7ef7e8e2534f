// SPDX-License-Identifier: Apache-2.0

package shell

import (
	"errors"
	"strings"
)

var errOpenQuote = errors.New("a quote is not closed")

// IsMessage tells whether a line begins a whole message, which may go on over several lines.
func IsMessage(line string) bool { return strings.HasPrefix(strings.TrimSpace(line), "{") }

// Split takes a line apart as a POSIX shell does: at blanks, with single quotes, double quotes and backslashes, and a comment after
// a #. A whole message is one word. So a line of the shell is what one would write behind `blkmirror qmp`.
func Split(line string) ([]string, error) {
	if IsMessage(line) {
		return []string{strings.TrimSpace(line)}, nil
	}
	words, open := split(line)
	if open {
		return nil, errOpenQuote
	}
	return words, nil
}

// split also tells whether a quote, or a backslash, waits for its end.
func split(line string) (words []string, open bool) {
	var word strings.Builder
	begun := false
	var quote rune // 0 outside of quotes
	escaped := false
	for _, c := range line {
		switch {
		case escaped:
			if quote == '"' && !strings.ContainsRune("\"\\$`", c) {
				word.WriteByte('\\')
			}
			word.WriteRune(c)
			escaped = false
		case c == '\\' && quote != '\'':
			escaped, begun = true, true
		case quote != 0:
			if c == quote {
				quote = 0
			} else {
				word.WriteRune(c)
			}
		case c == '\'' || c == '"':
			quote, begun = c, true
		case c == ' ' || c == '\t' || c == '\n' || c == '\r':
			if begun {
				words = append(words, word.String())
				word.Reset()
				begun = false
			}
		case c == '#' && !begun:
			return words, false
		default:
			word.WriteRune(c)
			begun = true
		}
	}
	if begun {
		words = append(words, word.String())
	}
	return words, quote != 0 || escaped
}
