// SPDX-License-Identifier: Apache-2.0

// Package mirror copies a disk to another one while guests go on writing to it, and switches over at the end.
//
//	guest ──► export ──► filter ──┬──► source        planner: what of the target is right (no I/O, no goroutine)
//	                       ▲      └──► target        runner:  one loop, a few copies in flight
//	                   job's backend
//
// The filter node is put above the source before anything is looked at, so every write passes it. The planner is told of
// each write and of each copy; it answers what has to be done about the target. The runner's loop does the rest:
//
//	is the target zero? ─► scan the source ─► copy what is dirty ─► flush ─► ready ─► … ─► complete
//	                                             ▲                                │ drained: copy the rest, flush, pivot
//	                                             └── guests' writes (background) ◄┘
//
// docs/mirror-algorithm.md has the invariants I1–I9 and the argument why the copy is right. The package does not talk to
// operators, keeps no log, and knows no image format.
package mirror
