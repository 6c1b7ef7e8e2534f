// SPDX-License-Identifier: Apache-2.0

package api

import (
	"slices"

	"github.com/blkmirror/blkmirror/qmp"
)

// CommandNames returns the names of all commands, qmp_capabilities included.
func CommandNames() []string { return slices.Clone(commandNames) }

// HasCommand tells whether there is a command of this name.
func HasCommand(name string) bool { return slices.Contains(commandNames, name) }

// DecodeEvent returns a received event in its own type, or nil if the event
// is unknown.
func DecodeEvent(name string, data *qmp.Object) (qmp.Event, error) {
	e := newEvent(name)
	if e == nil {
		return nil, nil
	}
	if err := qmp.Decode(data, qmp.Lenient, e); err != nil {
		return nil, err
	}
	return e, nil
}

type event interface {
	qmp.Event
	qmp.Decodable
}

// list makes a result that is a list encodable.
type list[T any, P interface {
	*T
	qmp.Encodable
}] []T

func (l list[T, P]) EncodeQMP(e *qmp.Encoder) {
	e.BeginArray()
	for i := range l {
		e.Elem()
		P(&l[i]).EncodeQMP(e)
	}
	e.EndArray()
}

// noArguments refuses arguments of a command that has none.
func noArguments(args *qmp.Object) error {
	if args.Len() == 0 {
		return nil
	}
	return qmp.Decode(args, qmp.Strict, nothing{})
}

// nothing is an object without members.
type nothing struct{}

func (nothing) DecodeQMP(p qmp.Param) {
	m := p.Object()
	m.End()
}
