// SPDX-License-Identifier: Apache-2.0

// Package nbd is the driver 'nbd': a disk that another host or process serves by the NBD protocol.
//
// A disk has at most one session at a time: one or more connections to the same export, made together and given up
// together. Each connection has a writer, which puts the requests at hand into one message, and a reader, which gives
// each reply to its request by the cookie; any number of requests is in flight, up to a bound.
//
//	Disk ── session ──┬── conn: queue ─► writer ═══► server
//	  │               │         slots ◄─ reader ◄═══
//	  └─ keeper       └── conn …                             (several only if the server says multi-conn)
//
// A request belongs to its caller until it has its outcome. Data goes straight between the caller's buffer and the socket.
// A caller whose context ends takes its buffer back at once: what is not sent yet goes out from a copy, and what comes for
// it is thrown away. So a peer that is dead holds nobody up, and the stream stays whole.
//
// When a connection is lost, the keeper makes a new session, with pauses that grow from 10 ms to 1 s:
//
//	            loss                      delay over
//	connected ────────► waiting requests ────────────► failing requests
//	    ▲                      │                              │
//	    └──────────────────────┴──────── new session ─────────┘
//	                           │ another size, less than before
//	                           ▼
//	                        broken, for good
//
// With a reconnect delay of zero there is no waiting. What had been sent when the connection was lost fails at once
// without a delay; with one, reads are sent again, and the rest, too, unless somebody is registered by
// [block.Reconnector], who then has to be told.
//
// Block status comes from the context base:allocation. The extents of the last answer are kept for a moment, less what was
// written since, so that a scan of the disk costs few round trips.
//
// The package does not serve exports, does not resize them, and does not find servers.
package nbd
