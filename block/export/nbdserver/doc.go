// SPDX-License-Identifier: Apache-2.0

// Package nbdserver serves nodes to NBD clients: one [Server] listens on a socket and has any number of exports by
// name. It speaks fixed newstyle with simple and structured replies or extended headers, block status with the contexts of
// QEMU, and TLS, whose configuration it is given: it knows no files of keys. It writes no log: [Events] tell what happened
// to connections.
//
//	Server ── accept loop ──► session: handshake ──► transmission ──► Backend of an Export ──► node
//	   └───── watchman                                 (one goroutine reads, others may carry out requests)
//
// # How requests are carried out
//
// The usual request takes a few microseconds, less than a switch between goroutines. So the goroutine that read it also
// carries it out, and goes on to the next one that it has already read; replies gather and leave in one system call
// when nothing more is at hand. A request may also take long: parked at a closed gate, waiting for a disk or for the
// target of a mirror. Then nobody must wait behind it. Both are had by passing on the right to read:
//
// Goroutines of a session work in turn. Exactly one has the turn: it alone reads requests. It gives the turn away
// before it carries out a request that will probably take long (because requests of that sort took longer than
// [slowAfter] lately and others are waiting, or because the gate is closed), and carries the request out beside the
// next one. Otherwise it keeps the turn but lends it: if it is not back within two rounds of the server's watchman (of
// [patrolEvery] each), the watchman gives the turn to another goroutine, which carries on reading. The same goes for
// writing replies to a client that does not read them. So a fast request costs no switch, a slow one costs one, and one
// that surprised us holds up its successors for two rounds at most.
//
//	            reads, parses                    carries out, answers
//	idle ─turn─► has the turn ──probably fast──► lent ──back in time──► has the turn
//	  ▲              │                             └──too late──► worker ─┐
//	  │              └────probably slow, turn passed on────────► worker ─┤
//	  └───────────────────────────────────────────────────────────────────┘
//
// # Bounds
//
// A session has at most MaxRequests requests and [maxBytes] bytes of their data on its hands, counted until their
// replies are written; above that it reads no more. Data that waits for the client to take it is bounded more closely, by
// [maxUnsent]: then no further read is begun. A client that does not read its replies thus stops itself and nobody else.
// All sessions share one budget of memory, of which each has a part of its own; one that must wait for more reads nothing
// meanwhile. Above MaxConnections clients no more are accepted; they wait in the kernel. The data of a write lies in a
// buffer of the server's own.
//
// # Endings
//
// After NBD_CMD_DISC everything that was read is carried out and answered. When the client vanishes, requests parked at
// a gate are given up; those that passed it are carried out. (That is noticed by reading, so not before a client that has
// as much under way as it may gets its first reply.) Bytes that make no sense end the connection, and
// nothing else. Removing an export hard, or stopping the server, cancels and closes its connections and waits until
// their last request has ended.
//
// All connections of an export share one backend, so a flush on one covers the writes of all: clients may use several.
package nbdserver
