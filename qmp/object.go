// SPDX-License-Identifier: Apache-2.0

package qmp

import "iter"

// indexedFrom is the number of members from which an Object keeps an index.
// Below it, comparing names one by one is faster.
const indexedFrom = 16

// Member is one name and value of an Object.
type Member struct {
	Name  string
	Value any
}

// Object is a JSON object that keeps the order of its members. A nil *Object
// can be read, and is empty.
type Object struct {
	members []Member
	index   map[string]int // nil below indexedFrom
}

// NewObject returns an object with these members. Of members with the same
// name the last one counts.
func NewObject(members ...Member) *Object {
	o := &Object{members: make([]Member, 0, len(members))}
	for _, m := range members {
		o.Set(m.Name, m.Value)
	}
	return o
}

// Len returns the number of members.
func (o *Object) Len() int {
	if o == nil {
		return 0
	}
	return len(o.members)
}

// At returns member number i.
func (o *Object) At(i int) Member { return o.members[i] }

// Get returns the value of a member, and whether there is such a member.
func (o *Object) Get(name string) (any, bool) {
	i := o.find(name)
	if i < 0 {
		return nil, false
	}
	return o.members[i].Value, true
}

// Set changes the value of a member, or adds it at the end.
func (o *Object) Set(name string, value any) {
	if i := o.find(name); i >= 0 {
		o.members[i].Value = value
		return
	}
	o.append(name, value)
}

// All iterates over the members in order.
func (o *Object) All() iter.Seq2[string, any] {
	return func(yield func(string, any) bool) {
		for i := range o.Len() {
			if m := o.members[i]; !yield(m.Name, m.Value) {
				return
			}
		}
	}
}

func (o *Object) find(name string) int {
	if o == nil {
		return -1
	}
	if o.index != nil {
		if i, ok := o.index[name]; ok {
			return i
		}
		return -1
	}
	for i := range o.members {
		if o.members[i].Name == name {
			return i
		}
	}
	return -1
}

// append adds a member whose name is known to be new.
func (o *Object) append(name string, value any) {
	o.members = append(o.members, Member{name, value})
	switch {
	case o.index != nil:
		o.index[name] = len(o.members) - 1
	case len(o.members) == indexedFrom:
		o.index = make(map[string]int, 2*indexedFrom)
		for i := range o.members {
			o.index[o.members[i].Name] = i
		}
	}
}

// MarshalJSON returns what goes over the wire.
func (o *Object) MarshalJSON() ([]byte, error) { return Encode(o), nil }
