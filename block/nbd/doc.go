// SPDX-License-Identifier: Apache-2.0

// Package nbd is the language of the NBD protocol: its constants, and the encoding and decoding of its messages. Server
// and client share it.
//
// A connection has two phases. In the handshake (fixed newstyle) the server greets, the client sends options one at a
// time, and the server answers each with any number of data replies and a final one:
//
//	S: "NBDMAGIC" "IHAVEOPT" handshake-flags
//	C: client-flags
//	C: "IHAVEOPT" option length data        S: magic option type length data   (… until ACK or an error)
//	C: OPT_GO name wanted-infos             S: INFO export, INFO block-size, ACK
//
// In the transmission phase the client sends requests, any number at a time, and the server answers in any order; the
// cookie of a request comes back in its reply. A reply is simple (16 bytes, then the data of a read) or, when the client
// asked for that, structured: chunks of their own type and length, the last of which is marked DONE.
//
//	C: request  = magic flags command cookie offset length  (a write's data)
//	S: simple   = magic error cookie                        (a read's data)
//	S: chunk    = magic flags type cookie length payload
//
// A client may also ask for extended headers. Then requests and chunks carry 64-bit lengths, and no reply is simple.
//
// All numbers are big endian. The Append functions add a message to a slice, as [encoding/binary] does, and the Parse
// functions read one from bytes that may come from anybody: they never panic, and refuse what is not well formed. The
// package does no I/O.
package nbd
