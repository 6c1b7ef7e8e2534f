// SPDX-License-Identifier: Apache-2.0

// Package metamorphic runs one history of a disk under many sets of options that must make no difference to it.
//
//	seed ─► history: what a guest and an operator do ─┐
//	                                                  ├─► daemon, NBD guest, QMP operator ─► reads, last bytes
//	seed ─► option sets: granularity, formats, … ─────┘                                         │
//	                                   a plain array of bytes, told the same history ─► the same ┘
//
// A history is some hundred reads, writes, zeroes, trims and flushes, several at a time where they do not overlap, and a mirror
// that is started, changed, paused, cancelled and started again, and completed beside them; the guest goes on afterwards.
// Every read must give what the array has, whatever the options. What was trimmed reads as before or as zeroes, each byte to
// its own, but once it was read it stays. At the end the file of the disk that the guest is left with must hold the array, and
// the source's file the same, but for what the guest wrote since the switch.
//
// Sets and histories are printed by seed and in words, and a failure says how to run it again; -metamorphic.shrink looks for
// the shortest history that still fails.
//
// The package has nothing but tests. It does not test failures of disks, which daemon/blackbox and job/mirror do, nor guests that
// overlap each other, whose outcome is not determined.
package metamorphic
