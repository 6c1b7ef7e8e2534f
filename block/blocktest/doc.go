// SPDX-License-Identifier: Apache-2.0

// Package blocktest is what tests of the block layer and of its users share.
//
// [TestDriver] is the suite that every driver must pass. [Mem] is a disk in memory for tests of everything above drivers:
// it can do all that a driver can, checks that requests keep to its limits, keeps a list of the calls, lets a test step
// in before and after each, and can lose what was not flushed, as a host does that loses its power:
//
//	disk := blocktest.NewMem(blocktest.MemOptions{Size: 1 << 20})
//	graph := block.NewGraph()
//	node := blocktest.NewNode(t, graph, "disk", disk, block.Options{})
//	…
//	after := disk.Crash(seed)   // what a later start may find
package blocktest
