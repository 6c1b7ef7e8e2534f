// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Filters say how a step shows what it got.
type Filters struct {
	PickKey    string   // of a list: only items whose key
	PickValues []string // is one of these, in this order
	Fields     []string // only these fields, which may be dotted paths
	Mask       []string // these fields become "*"
	Sorted     bool     // sort a list
	Unordered  bool     // sort the events of the step
	Full       bool     // whole messages
	Exact      bool     // compare without allowing for more fields
}

func parseFilters(words []string) (f Filters, err error) {
	for _, word := range words {
		key, value, valued := strings.Cut(word, "=")
		flags := map[string]*bool{"sorted": &f.Sorted, "unordered": &f.Unordered, "full": &f.Full, "exact": &f.Exact}
		switch {
		case flags[key] != nil && !valued:
			*flags[key] = true
		case key == "fields" && value != "":
			f.Fields = strings.Split(value, ",")
		case key == "mask" && value != "":
			f.Mask = strings.Split(value, ",")
		case key == "pick" && value != "":
			name, values, ok := strings.Cut(value, ":")
			if !ok {
				return f, fmt.Errorf("filter is not pick=KEY:VALUE,VALUE: %q", word)
			}
			f.PickKey, f.PickValues = name, strings.Split(values, ",")
		default:
			return f, fmt.Errorf("unknown filter %q", word)
		}
	}
	return f, nil
}

// apply selects from a value, sorts it and hides parts of it.
func (f Filters) apply(value any) (any, error) {
	if f.PickKey != "" {
		list, ok := value.([]any)
		if !ok {
			return nil, fmt.Errorf("cannot pick from %s, which is not a list", renderJSON(value))
		}
		value = f.pick(list)
	}
	list, isList := value.([]any)
	if f.Fields != nil {
		if isList {
			for i, item := range list {
				list[i] = f.choose(item)
			}
		} else {
			value = f.choose(value)
		}
	}
	if f.Sorted && isList {
		slices.SortStableFunc(list, func(a, b any) int { return cmp.Compare(renderJSON(a), renderJSON(b)) })
	}
	if !isList {
		list = []any{value}
	}
	for _, item := range list {
		object, _ := item.(map[string]any)
		for _, name := range f.Mask {
			if _, ok := object[name]; ok {
				object[name] = masked
			}
		}
	}
	return value, nil
}

func (f Filters) pick(list []any) []any {
	picked := []any{}
	for _, wanted := range f.PickValues {
		for _, item := range list {
			if dig(item, f.PickKey) == wanted {
				picked = append(picked, item)
			}
		}
	}
	return picked
}

func (f Filters) choose(item any) map[string]any {
	chosen := make(map[string]any, len(f.Fields))
	for _, name := range f.Fields {
		chosen[name] = dig(item, name)
	}
	return chosen
}

// order puts events into a fixed order if theirs is a matter of timing.
func (f Filters) order(lines []Outcome) []Outcome {
	if f.Unordered {
		slices.SortStableFunc(lines, func(a, b Outcome) int { return cmp.Compare(a.String(), b.String()) })
	}
	return lines
}
