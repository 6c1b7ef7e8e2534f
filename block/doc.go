// SPDX-License-Identifier: Apache-2.0

// Package block is the block layer: named nodes that hold disks, the graph they form, and the handles through which
// exports and jobs use them.
//
// A [Node] is one disk image or one stage on the way to it. It wraps a [Driver], which does nothing but the I/O of one
// format or protocol; the node checks every request once (range, flags, read-only, alignment), applies the options
// that all nodes share (detect-zeroes, discard, cache.no-flush) and counts. A node's children and users hang on it by
// an [Edge]:
//
//	export 'e' ── Backend ─┐                          (a backend has the gate)
//	job 'm'    ── Backend ─┤
//	                       ▼
//	                  mirror filter ──"target"──► raw ──"file"──► file
//	                       │"backing"
//	                       ▼
//	                      raw ──"file"──► file
//
// Requests go down the edges. Only a [Backend] has a [Gate]: a request passes one gate, at the top, and none below, so
// a closed gate stops new requests and never one that is half done. [Tx.Drain] closes the gates of all backends above
// a node and waits until the requests that passed have ended; the shape of the graph changes only then, and only
// inside [Graph.Change].
//
// Every edge says which permissions it needs and which it leaves to others ([Perm]); a change that leads to a
// conflict is rolled back and the error names both parties. Drivers of image files carry the result outside with
// locks on the file ([PermissionHolder]).
//
// All offsets and lengths are int64 bytes. The package starts no goroutine and writes no log.
package block
