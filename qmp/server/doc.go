// SPDX-License-Identifier: Apache-2.0

// Package server answers QMP clients.
//
// A Server has listeners, a listener has any number of clients at once, and
// each client has a session: greeting, negotiation, then commands. Commands
// run one at a time over all sessions; sessions that wait take turns. A command
// that waits for somebody else lets others run meanwhile, by Aside. Replies of
// one session come in the order of its requests.
//
//	client --> session: read, parse --> turn --> Config.Commands
//	                                               |        |
//	client <-- session: output queue <-- reply ----+        +--> Emit, AfterReply
//	                         ^
//	                         +--- events, for every session that negotiated
//
// Order on the wire: an event that a command emits before it returns comes
// before its reply; what runs through AfterReply comes after it.
//
// A session's goroutine writes replies itself, so that a query costs one read
// and one write; events are written by a second goroutine, and Emit never
// waits. A client that does not read its replies is not read from, either; one
// that does not read its events is dropped when its queue is full.
//
// Where QEMU does worse, this does better: several clients per socket, no
// stealing of another daemon's socket, output that is bounded, and commands
// that arrived completely are executed even if the client has gone.
//
// The package knows no command but qmp_capabilities.
package server
