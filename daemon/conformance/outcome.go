// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"fmt"
	"strings"
)

// Outcome is one line of what a step did: words, or a word with a JSON value.
type Outcome struct {
	Words string // compared as they are; all there is unless HasValue
	Value any    // compared with covers
	// HasValue tells a value of null from none.
	HasValue bool
	Comment  string // not compared
}

func words(format string, args ...any) Outcome {
	return Outcome{Words: fmt.Sprintf(format, args...)}
}

func withValue(word string, value any) Outcome {
	return Outcome{Words: word, Value: value, HasValue: true}
}

// commentMark separates an error's class from its text, which is free.
const commentMark = "  # "

// parseOutcome reads a recorded line, without its '<'.
func parseOutcome(line string) Outcome {
	if strings.HasPrefix(line, "error ") {
		text, comment, _ := strings.Cut(line, commentMark)
		return Outcome{Words: text, Comment: comment}
	}
	if word, rest, ok := strings.Cut(line, " "); ok {
		if value, err := decodeJSON(rest); err == nil {
			return withValue(word, value)
		}
	}
	return Outcome{Words: line}
}

func (o Outcome) String() string {
	text := o.Words
	if o.HasValue {
		text += " " + renderJSON(o.Value)
	}
	if o.Comment != "" {
		text += commentMark + o.Comment
	}
	return text
}

// Allows tells whether actual is what was recorded, or as good. With exact, a
// value must not have more than was recorded.
func (o Outcome) Allows(actual Outcome, exact bool) bool {
	if o.HasValue != actual.HasValue {
		return false
	}
	if !o.HasValue {
		return o.Words == actual.Words || sameAllocation(o.Words, actual.Words)
	}
	if o.Words != actual.Words {
		return false
	}
	if exact {
		return renderJSON(o.Value) == renderJSON(actual.Value)
	}
	return covers(o.Value, actual.Value)
}

// allocationTolerance is by how many bytes the allocated size of a file may
// differ: file systems round, and keep blocks of their own.
const allocationTolerance = 256 << 10

// sameAllocation compares two lines of the form "alloc NAME SIZE of SIZE".
func sameAllocation(expected, actual string) bool {
	want, got := strings.Fields(expected), strings.Fields(actual)
	if len(want) != 5 || len(got) != 5 || want[0] != "alloc" || got[0] != "alloc" ||
		want[1] != got[1] || want[4] != got[4] {
		return false
	}
	wantSize, err := parseSize(want[2])
	if err != nil {
		return false
	}
	gotSize, err := parseSize(got[2])
	return err == nil && max(wantSize-gotSize, gotSize-wantSize) <= allocationTolerance
}
