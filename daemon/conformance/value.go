// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// JSON values are held as encoding/json decodes them into any, with numbers
// as json.Number: 1 and 1.0 are different things on a monitor.

// decodeJSON decodes exactly one value.
func decodeJSON(text string) (any, error) {
	decoder := json.NewDecoder(strings.NewReader(text))
	decoder.UseNumber()
	var value any
	if err := decoder.Decode(&value); err != nil {
		return nil, err
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("more than one JSON value: %q", text)
	}
	return value, nil
}

// renderJSON writes a value the way scenarios do: sorted keys, a blank behind
// commas and colons.
func renderJSON(value any) string {
	var out bytes.Buffer
	writeJSON(&out, value)
	return out.String()
}

func writeJSON(out *bytes.Buffer, value any) {
	switch value := value.(type) {
	case map[string]any:
		out.WriteByte('{')
		for i, key := range slices.Sorted(maps.Keys(value)) {
			if i > 0 {
				out.WriteString(", ")
			}
			writeJSON(out, key)
			out.WriteString(": ")
			writeJSON(out, value[key])
		}
		out.WriteByte('}')
	case []any:
		out.WriteByte('[')
		for i, item := range value {
			if i > 0 {
				out.WriteString(", ")
			}
			writeJSON(out, item)
		}
		out.WriteByte(']')
	default:
		encoder := json.NewEncoder(out)
		encoder.SetEscapeHTML(false)
		if err := encoder.Encode(value); err != nil {
			// Only values that decodeJSON made come here.
			panic(fmt.Sprintf("conformance: %T in a JSON value: %v", value, err))
		}
		out.Truncate(out.Len() - 1) // the encoder ends with a newline
	}
}

// dig follows "a.b.0.c" through objects and arrays; nil where the path ends.
func dig(value any, path string) any {
	for part := range strings.SplitSeq(path, ".") {
		switch inner := value.(type) {
		case map[string]any:
			value = inner[part]
		case []any:
			index, err := strconv.ParseUint(part, 10, 31)
			if err != nil || index >= uint64(len(inner)) {
				return nil
			}
			value = inner[index]
		default:
			return nil
		}
	}
	return value
}

// masked stands for any value.
const masked = "*"

var generatedName = regexp.MustCompile(`#block[0-9]+`)

// mask replaces what legitimately differs from run to run: versions and
// timestamps, the digits of generated node names, and the scenario's folder,
// of which dirs gives the spellings, longest first.
func mask(value any, dirs []string) any {
	switch value := value.(type) {
	case map[string]any:
		everything := hasKeys(value, "major", "minor", "micro") ||
			len(value) == 2 && hasKeys(value, "seconds", "microseconds")
		result := make(map[string]any, len(value))
		for key, item := range value {
			if everything || key == "package" {
				result[key] = masked
			} else {
				result[key] = mask(item, dirs)
			}
		}
		return result
	case []any:
		result := make([]any, len(value))
		for i, item := range value {
			result[i] = mask(item, dirs)
		}
		return result
	case string:
		for _, dir := range dirs {
			value = strings.ReplaceAll(value, dir, "$dir")
		}
		return generatedName.ReplaceAllString(value, "#block")
	}
	return value
}

func hasKeys(object map[string]any, keys ...string) bool {
	for _, key := range keys {
		if _, ok := object[key]; !ok {
			return false
		}
	}
	return true
}

// covers tells whether actual has everything that expected has. Objects may
// have more fields, arrays not more items.
func covers(expected, actual any) bool {
	if expected == masked {
		return true
	}
	switch expected := expected.(type) {
	case map[string]any:
		object, ok := actual.(map[string]any)
		if !ok {
			return false
		}
		for key, wanted := range expected {
			got, present := object[key]
			if !present || !covers(wanted, got) && !isErrorText(key, wanted, got) {
				return false
			}
		}
		return true
	case []any:
		array, ok := actual.([]any)
		return ok && slices.EqualFunc(expected, array, covers)
	}
	return sameScalar(expected, actual)
}

// isErrorText is for the reason of a failed job: it must be given, its
// wording is free.
func isErrorText(key string, expected, actual any) bool {
	_, both := expected.(string)
	_, ok := actual.(string)
	return key == "error" && both && ok
}

// sameScalar compares what is neither object nor array.
func sameScalar(a, b any) bool {
	switch a.(type) {
	case map[string]any, []any:
		return false
	}
	switch b.(type) {
	case map[string]any, []any:
		return false
	}
	return a == b
}

func jsonNumber(n int64) json.Number { return json.Number(strconv.FormatInt(n, 10)) }
