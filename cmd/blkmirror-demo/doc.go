// SPDX-License-Identifier: Apache-2.0

// Command blkmirror-demo shows a mirror at work, and proves that the copy is
// right. It needs no privileges and nothing besides the daemon's binary.
//
// It makes a thin source disk with pieces of data on it and an empty target,
// starts a real daemon on both, and plays the guest: it writes, zeroes, trims
// and reads the exported disk over NBD, and notes in a model what every sector
// must read as. Meanwhile the disk is mirrored, and the guest is switched to
// the target without noticing:
//
//	guest:   | alone | while copying | in step | switch |  on the target  |
//	source:  |========= is the disk ==================|-- must not change --|
//	target:          |= is filled ====================|=== is the disk =====|
//
// At the end every byte of the target is compared with the model. The exit
// status is 0 only if all of it is as it must be: a guest that saw an error or
// wrong data, a source that changed after the switch, and a target with one
// wrong byte each make it 1.
//
// It is no benchmark: the guest is held to a number of requests per second,
// and the copy to a speed that gives the guest time to write beside it.
package main
