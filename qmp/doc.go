// SPDX-License-Identifier: Apache-2.0

// Package qmp is the language of the monitor: JSON messages as QEMU's machine
// protocol (QMP) exchanges them.
//
// A server greets a client, the client negotiates with qmp_capabilities, and
// from then on sends commands that are answered in order, while events arrive
// whenever something happens:
//
//	<- {"QMP": {"version": {...}, "capabilities": ["oob"]}}
//	-> {"execute": "qmp_capabilities"}
//	<- {"return": {}}
//	-> {"execute": "job-pause", "arguments": {"id": "m"}, "id": 7}
//	<- {"timestamp": {...}, "event": "JOB_STATUS_CHANGE", "data": {...}}
//	<- {"return": {}, "id": 7}
//
// The package has what both ends and the command line need:
//
//   - values: nil, bool, int64, uint64, float64, string, []any and *Object.
//     Integers from -2^63 to 2^64-1 are kept exactly; objects keep the order
//     of their members.
//   - Reader takes messages from a stream. It needs no newlines, accepts
//     single quotes as QEMU does, and finds its way after malformed input.
//   - Encoder writes values and generated types.
//   - Param and Members check arguments against the schema; the code that
//     calls them is generated, in qmp/api. The command line uses the same
//     code with every leaf being a string (mode Keyval).
//   - Error is an error as it goes over the wire, Event what can be announced.
//
// It does not open sockets, knows no command, and does not log: see
// qmp/server, qmp/client and qmp/api.
package qmp
