// SPDX-License-Identifier: Apache-2.0

package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

const (
	maxFile  = 1 << 20
	maxDepth = 64
)

// Kind says what an option takes.
type Kind uint8

// The kinds.
const (
	Value  Kind = iota // one text, such as a path or a number
	Switch             // true or false
	List               // texts: the option is given once for each
	Object             // mappings, written as JSON: the option is given once for each; a text is taken as it is
	Keyval             // mappings, written as key=value,…; a text is taken as it is
)

// Spec says which options a file may have, by name, and of which kind they are.
type Spec map[string]Kind

// Option is one option as on a command line.
type Option struct {
	Name, Text string
	Place
}

// Place is where in a file something stands. The zero value is no file.
type Place struct {
	File string
	Line int
	keys map[string]int // lines of the keys of an object, by path
}

// String is file:line.
func (p Place) String() string { return fmt.Sprintf("%s:%d", p.File, p.Line) }

var quoted = regexp.MustCompile(`'([^']+)'`)

// Explain puts the place before an error of whoever read the option: that of the key that the error names, if it names one.
func (p Place) Explain(option string, err error) error {
	for _, m := range quoted.FindAllStringSubmatch(err.Error(), -1) {
		if line := p.keys[m[1]]; line > 0 {
			p.Line = line
			break
		}
	}
	return fmt.Errorf("%s: %s: %w", p, option, err)
}

// Read reads a file.
func Read(path string, spec Spec) ([]Option, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, err
	}
	if len(text) > maxFile {
		return nil, fmt.Errorf("%s: a configuration of more than %d bytes", path, maxFile)
	}
	return Parse(path, text, spec)
}

// Parse reads the text of a file. The options come in the order of the file, those of one name together.
func Parse(file string, text []byte, spec Spec) ([]Option, error) {
	var document, second yaml.Node
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	switch err := decoder.Decode(&document); {
	case errors.Is(err, io.EOF):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("%s: %w", file, plain(err))
	}
	r := reader{file}
	if err := decoder.Decode(&second); !errors.Is(err, io.EOF) {
		return nil, r.fail(&second, "there is more than one document")
	}
	if len(document.Content) != 1 {
		return nil, nil
	}
	top := document.Content[0]
	if top.Kind == yaml.ScalarNode && top.Tag == "!!null" {
		return nil, nil
	}
	if err := r.check(top, 0); err != nil {
		return nil, err
	}
	if top.Kind != yaml.MappingNode {
		return nil, r.fail(top, "expects options, such as 'state-dir: PATH'")
	}
	var options []Option
	for i := 0; i < len(top.Content); i += 2 {
		key, value := top.Content[i], top.Content[i+1]
		kind, known := spec[key.Value]
		if !known {
			return nil, r.fail(key, "unknown option '%s'%s", key.Value, near(key.Value, spec))
		}
		texts, err := r.option(key, value, kind)
		if err != nil {
			return nil, err
		}
		options = append(options, texts...)
	}
	return options, nil
}

// plain is an error of the YAML package without what it took for the name of an anchor: it may be a secret that begins with a star
// and was not quoted.
func plain(err error) error {
	if strings.Contains(err.Error(), "unknown anchor") {
		return errors.New("yaml: anchors and aliases are not taken; a text that begins with * wants quotes")
	}
	return err
}

// near names an option that may have been meant.
func near(name string, spec Spec) string {
	bare := func(s string) string {
		return strings.TrimSuffix(strings.NewReplacer("-", "", "_", "").Replace(strings.ToLower(s)), "s")
	}
	var found []string
	for known := range spec {
		if bare(known) == bare(name) {
			found = append(found, known)
		}
	}
	if len(found) == 0 {
		return ""
	}
	return "; '" + slices.Min(found) + "' is one"
}

type reader struct{ file string }

func (r reader) fail(at *yaml.Node, format string, args ...any) error {
	return fmt.Errorf("%s: %s", Place{File: r.file, Line: max(at.Line, 1)}, fmt.Sprintf(format, args...))
}

// check refuses what would make a file mean something else than it seems to.
func (r reader) check(n *yaml.Node, depth int) error {
	switch {
	case depth > maxDepth:
		return r.fail(n, "more than %d levels", maxDepth)
	case n.Kind == yaml.AliasNode || n.Anchor != "":
		return r.fail(n, "anchors and aliases are not taken")
	case n.Style&yaml.TaggedStyle != 0:
		return r.fail(n, "tags such as !!str are not taken; quotes make a text of a value")
	}
	seen := map[string]bool{}
	for i, c := range n.Content {
		if n.Kind == yaml.MappingNode && i%2 == 0 {
			switch {
			case c.Kind != yaml.ScalarNode || c.Tag == "!!merge" || c.Anchor != "":
				return r.fail(c, "a key is a name")
			case seen[c.Value]:
				return r.fail(c, "'%s' is given twice", c.Value)
			}
			seen[c.Value] = true
			continue
		}
		if err := r.check(c, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// option makes texts of the value of one key.
func (r reader) option(key, value *yaml.Node, kind Kind) ([]Option, error) {
	items := []*yaml.Node{value}
	if value.Kind == yaml.SequenceNode {
		if kind == Value || kind == Switch {
			return nil, r.fail(value, "'%s' takes one value, not a list", key.Value)
		}
		items = value.Content
	}
	var options []Option
	for _, item := range items {
		o := Option{Name: key.Value, Place: Place{File: r.file, Line: item.Line, keys: map[string]int{}}}
		var err error
		switch {
		case item.Kind == yaml.ScalarNode && item.Tag == "!!null":
			err = r.fail(key, "'%s' has no value", key.Value)
		case kind == Switch && (item.Kind != yaml.ScalarNode || item.Tag != "!!bool"):
			err = r.fail(item, "'%s' expects true or false", key.Value)
		case kind == Switch:
			o.Text = strings.ToLower(item.Value)
		case item.Kind == yaml.ScalarNode:
			o.Text = item.Value
		case item.Kind != yaml.MappingNode || kind == Value || kind == List:
			err = r.fail(item, "'%s' expects %s", key.Value, wanted(kind))
		case kind == Keyval:
			o.Text, err = r.keyval(item, o.keys)
		default:
			var text bytes.Buffer
			err = r.json(&text, item, "", o.keys)
			o.Text = text.String()
		}
		if err != nil {
			return nil, err
		}
		options = append(options, o)
	}
	return options, nil
}

func wanted(kind Kind) string {
	if kind == Value || kind == List {
		return "a plain value"
	}
	return "a mapping or a list of them"
}
