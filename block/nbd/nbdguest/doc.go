// SPDX-License-Identifier: Apache-2.0

// Package nbdguest is an NBD client for tests and demonstrations: it plays
// the guest that reads and writes an exported disk.
//
// A connection has two phases. In the handshake the server greets, and the
// client sends options one after the other: what exports are there, may
// replies be structured, which metadata is wanted, and at last which export
// to use. Then both enter transmission, where the client sends requests, each
// with a cookie, and the server answers in whatever order it likes:
//
//	Connect -> Handshake -- List, Info, StructuredReplies, SetMetaContext --+
//	                                                                       |
//	           Client  <---------------- Go or ExportName -----------------+
//	             | Submit -> Request -> Wait      (any number in flight)
//	             +- Disconnect (NBD_CMD_DISC) or Close
//
// Dial does the usual handshake in one call. The package is written from the
// NBD protocol description alone and shares no code with the server or the
// driver of this project, so that a mistake made in one of them is not made a
// second time here and thereby hidden.
//
// It checks what the server sends: chunks outside the request, overlapping
// chunks, missing data, unknown cookies and oversized payloads end the
// connection with an error that wraps ErrProtocol. It does not check what the
// caller sends, because tests want to send requests that a server must refuse.
//
// It does not do TLS, extended headers, reconnecting or any caching, and it
// allocates per request: it is no base for a production driver.
package nbdguest
