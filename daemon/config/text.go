// SPDX-License-Identifier: Apache-2.0

package config

import (
	"bytes"
	"encoding/json"
	"math"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// json appends n as JSON, and takes note of the lines of its keys.
func (r reader) json(to *bytes.Buffer, n *yaml.Node, path string, lines map[string]int) error {
	switch n.Kind {
	case yaml.MappingNode:
		to.WriteByte('{')
		for i := 0; i < len(n.Content); i += 2 {
			key, value := n.Content[i], n.Content[i+1]
			if i > 0 {
				to.WriteByte(',')
			}
			below := note(lines, path, key)
			writeString(to, key.Value)
			to.WriteByte(':')
			if err := r.json(to, value, below, lines); err != nil {
				return err
			}
		}
		to.WriteByte('}')
	case yaml.SequenceNode:
		to.WriteByte('[')
		for i, item := range n.Content {
			if i > 0 {
				to.WriteByte(',')
			}
			if err := r.json(to, item, path+"["+strconv.Itoa(i)+"]", lines); err != nil {
				return err
			}
		}
		to.WriteByte(']')
	case yaml.ScalarNode:
		return r.scalar(to, n)
	default:
		return r.fail(n, "expects a value")
	}
	return nil
}

// note takes note of the line of a key, by its path and by its name alone, as errors call it by either.
func note(lines map[string]int, path string, key *yaml.Node) (below string) {
	below = key.Value
	if path != "" {
		below = path + "." + key.Value
	}
	lines[below] = key.Line
	if _, there := lines[key.Value]; !there {
		lines[key.Value] = key.Line
	}
	return below
}

func (r reader) scalar(to *bytes.Buffer, n *yaml.Node) error {
	switch n.Tag {
	case "!!null":
		to.WriteString("null")
	case "!!bool":
		to.WriteString(strings.ToLower(n.Value))
	case "!!int":
		var v int64
		var u uint64
		if n.Decode(&v) == nil {
			to.WriteString(strconv.FormatInt(v, 10))
		} else if n.Decode(&u) == nil {
			to.WriteString(strconv.FormatUint(u, 10))
		} else {
			return r.fail(n, "a number that is too large")
		}
	case "!!float":
		var v float64
		if err := n.Decode(&v); err != nil || math.IsInf(v, 0) || math.IsNaN(v) {
			return r.fail(n, "a number that there is not in JSON")
		}
		to.WriteString(strconv.FormatFloat(v, 'g', -1, 64))
	case "!!str", "!!timestamp": // what looks like a date is a text here
		writeString(to, n.Value)
	default:
		return r.fail(n, "a value of a type that there is not in JSON")
	}
	return nil
}

func writeString(to *bytes.Buffer, s string) {
	text, err := json.Marshal(s)
	if err != nil { // never: a string has a form
		panic(err)
	}
	to.Write(text)
}

// keyval is n as key=value,…; what is nested has dots in its keys.
func (r reader) keyval(n *yaml.Node, lines map[string]int) (string, error) {
	var parts []string
	var walk func(n *yaml.Node, path string) error
	walk = func(n *yaml.Node, path string) error {
		for i := 0; i < len(n.Content); i += 2 {
			key, value := n.Content[i], n.Content[i+1]
			if key.Value == "" || strings.ContainsAny(key.Value, ",=") {
				return r.fail(key, "a key is a name")
			}
			below := note(lines, path, key)
			switch {
			case value.Kind == yaml.MappingNode:
				if err := walk(value, below); err != nil {
					return err
				}
				continue
			case value.Kind != yaml.ScalarNode || value.Tag == "!!null":
				return r.fail(value, "'%s' expects a value", key.Value)
			}
			text := value.Value
			if value.Tag == "!!bool" {
				text = map[bool]string{true: "on", false: "off"}[strings.EqualFold(text, "true")]
			}
			parts = append(parts, below+"="+strings.ReplaceAll(text, ",", ",,"))
		}
		return nil
	}
	err := walk(n, "")
	return strings.Join(parts, ","), err
}
