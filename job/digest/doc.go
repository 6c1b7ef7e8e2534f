// SPDX-License-Identifier: Apache-2.0

// Package digest sums up what a disk reads as: a BLAKE3 tree over leaves of 1 MiB (docs/verify.md has the format).
//
//	Disk ◄── size, top of the tree
//	           │
//	       ┌───┴───┐
//	     ┌─┴─┐     leaf 2
//	 leaf 0  leaf 1         each of LeafSize bytes, the last one perhaps of fewer
//
// Leaves may be computed in any order and by whoever reads them; a Tree takes them from the start.
package digest
