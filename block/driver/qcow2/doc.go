// SPDX-License-Identifier: Apache-2.0

// Package qcow2 reads and writes disk images in the format qcow2, versions 2 and 3.
//
// The source of everything here is the specification that QEMU publishes as docs/interop/qcow2; names of fields are those
// of that text. docs/qcow2.md lists what of it is supported, and says why a crash leaves at most leaked clusters.
//
// An image is a file of clusters. Two pairs of tables lead through it, both pairs found by the header:
//
//	guest offset ─► L1 table ─► L2 table ─► host cluster      (maps)
//	host cluster ─► refcount table ─► refcount block ─► count  (refcounts)
//
// A guest cluster that no L2 entry speaks of is read from the backing node. The first tables of both pairs are in memory, the
// second ones in caches with a bound. A request looks up a run of clusters and does its I/O without a lock:
//
//	read      lookup ─► file, backing node, or zeroes
//	write     lookup ─► in place
//	          claim the clusters ─► alloc ─► data with what surrounds it ─► entries, in memory
//	zeroes    claim the clusters ─► entries, in memory ─► freed clusters
//	flush     commit: what changed in memory reaches the file, in an order that survives a crash
//
// Clusters that were freed are given to others when the file does not refer to them any more (commits) and no request can be
// using them (epochs). Whoever changes entries holds a claim on the guest clusters; of the locks, commits come before refcounts
// and maps, and the header's comes last. Locks that are held during I/O say so.
package qcow2
