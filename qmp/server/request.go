// SPDX-License-Identifier: Apache-2.0

package server

import "github.com/blkmirror/blkmirror/qmp"

// request is a message of a client.
type request struct {
	command   string
	arguments *qmp.Object
	oob       bool // exec-oob, not execute
	id        any
	hasID     bool
}

// parseRequest takes a message apart. The id is there for the reply even if
// the message is refused.
func parseRequest(value any, oob bool) (request, *qmp.Error) {
	var req request
	o, ok := value.(*qmp.Object)
	if !ok {
		return req, qmp.Errorf("QMP input must be a JSON object")
	}
	req.id, req.hasID = o.Get("id")
	var verbs int
	for name, value := range o.All() {
		switch {
		case name == "execute", name == "exec-oob" && oob:
			if req.command, ok = value.(string); !ok {
				return req, qmp.Errorf("QMP input member '%s' must be a string", name)
			}
			req.oob = name == "exec-oob"
			verbs++
		case name == "arguments":
			if req.arguments, ok = value.(*qmp.Object); !ok {
				return req, qmp.Errorf("QMP input member 'arguments' must be an object")
			}
		case name == "id":
		default:
			return req, qmp.Errorf("QMP input member '%s' is unexpected", name)
		}
	}
	switch verbs {
	case 0:
		return req, qmp.Errorf("QMP input lacks member 'execute'")
	case 1:
		return req, nil
	}
	return req, qmp.Errorf("QMP input member 'execute' clashes with 'exec-oob'")
}
