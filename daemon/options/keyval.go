// SPDX-License-Identifier: Apache-2.0

package options

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/blkmirror/blkmirror/qmp"
)

// Limits of what a command line may say. Nobody needs more.
const (
	maxDepth = 64      // fragments of a key
	maxText  = 1 << 20 // bytes
)

// item is one key=value.
type item struct {
	key   string
	value string
	bare  bool // there was no '=': value is empty
}

// split takes a text apart at commas. The first item may be a value alone, if
// implied is its key.
func split(text, implied string) ([]item, error) {
	if len(text) > maxText {
		return nil, fmt.Errorf("text is longer than %d bytes", maxText)
	}
	var items []item
	for first := true; text != ""; first = false {
		end := strings.IndexAny(text, "=,")
		switch {
		case end >= 0 && text[end] == '=':
			key := text[:end]
			var value string
			value, text = unescape(text[end+1:])
			items = append(items, item{key: key, value: value})
		case first && implied != "":
			var value string
			value, text = unescape(text)
			items = append(items, item{key: implied, value: value})
		case end < 0:
			items = append(items, item{key: text, bare: true})
			text = ""
		default:
			items = append(items, item{key: text[:end], bare: true})
			text = text[end+1:]
		}
	}
	return items, nil
}

// unescape returns the value that text begins with, and what follows the
// comma after it.
func unescape(text string) (value, rest string) {
	var b strings.Builder
	for {
		end := strings.IndexByte(text, ',')
		if end < 0 {
			b.WriteString(text)
			return b.String(), ""
		}
		b.WriteString(text[:end])
		if !strings.HasPrefix(text[end:], ",,") {
			return b.String(), text[end+1:]
		}
		b.WriteByte(',')
		text = text[end+2:]
	}
}

// keyval makes an object of a text in the notation of keys and values.
func keyval(text, implied string) (*qmp.Object, error) {
	items, err := split(text, implied)
	if err != nil {
		return nil, err
	}
	return build(items)
}

// build makes an object of items. Of items with the same key the last counts.
func build(items []item) (*qmp.Object, error) {
	root := qmp.NewObject()
	for _, it := range items {
		if it.bare {
			return nil, fmt.Errorf("Expected '=' after parameter '%s'", it.key)
		}
		if err := insert(root, it); err != nil {
			return nil, err
		}
	}
	for name, value := range root.All() {
		if _, number := index(name); number {
			return nil, fmt.Errorf("Invalid parameter '%s'", name)
		}
		list, err := lists(name, value)
		if err != nil {
			return nil, err
		}
		root.Set(name, list)
	}
	return root, nil
}

// insert puts a value where its key says. Lists are objects with numbers for
// names until all items are there.
func insert(root *qmp.Object, it item) error {
	fragments := strings.Split(it.key, ".")
	if len(fragments) > maxDepth {
		return fmt.Errorf("Parameter '%s' has more than %d parts", it.key, maxDepth)
	}
	o := root
	for i, f := range fragments {
		if !validFragment(f) {
			return fmt.Errorf("Invalid parameter '%s'", it.key)
		}
		old, exists := o.Get(f)
		inner, isObject := old.(*qmp.Object)
		last := i == len(fragments)-1
		if exists && isObject == last {
			return inconsistent(strings.Join(fragments[:i+1], "."))
		}
		switch {
		case last:
			o.Set(f, it.value)
		case !exists:
			inner = qmp.NewObject()
			o.Set(f, inner)
			fallthrough
		default:
			o = inner
		}
	}
	return nil
}

func inconsistent(key string) error {
	return fmt.Errorf("Parameters '%s.*' used inconsistently", key)
}

// lists turns objects whose names are numbers into lists, at any depth.
func lists(path string, value any) (any, error) {
	o, ok := value.(*qmp.Object)
	if !ok {
		return value, nil
	}
	numbers := 0
	for name, inner := range o.All() {
		converted, err := lists(path+"."+name, inner)
		if err != nil {
			return nil, err
		}
		o.Set(name, converted)
		if _, number := index(name); number {
			numbers++
		}
	}
	switch numbers {
	case 0:
		return o, nil
	case o.Len():
	default:
		return nil, inconsistent(path)
	}
	list := make([]any, numbers)
	for i := range list {
		name := strconv.Itoa(i)
		if list[i], ok = o.Get(name); !ok {
			return nil, fmt.Errorf("Parameter '%s.%s' missing", path, name)
		}
	}
	return list, nil
}

// index returns the number that a fragment of a key is, if it is one.
func index(fragment string) (int, bool) {
	i, err := strconv.Atoi(fragment)
	return i, err == nil && i >= 0 && strconv.Itoa(i) == fragment
}

// validFragment tells whether a fragment is a name or a number.
func validFragment(f string) bool {
	if _, number := index(f); number {
		return true
	}
	for i, c := range []byte(f) {
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c == '_'
		other := c >= '0' && c <= '9' || c == '-'
		if !letter && (i == 0 || !other) {
			return false
		}
	}
	return f != ""
}
