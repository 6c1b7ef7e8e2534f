// SPDX-License-Identifier: Apache-2.0

// Command blkmirror-bench measures storage daemons beside each other: blkmirrord, and whatever takes the command line
// of qemu-storage-daemon; for the scenario of a plain NBD server also others, such as nbdkit.
//
//	blkmirror-bench --daemon blkmirror=bin/blkmirrord --daemon 'qsd[aio=io_uring]=qemu-storage-daemon' --scale 0.2
//
// A scenario (S1 to S9) consists of cases. In each case all contenders do the same work, one after the other and several
// rounds long; each round begins with another contender, so that none is always the one that finds the machine warm or busy:
//
//	round 1:  A B C      one run: make the target, start the daemon, measure, stop the
//	round 2:  B C A               daemon, compare the target with the source, remove it
//	round 3:  C A B
//
// What counts as time is only the work itself, as seen from outside: from the command to the event, or from the first
// request to the last. Processor time is that of the daemon's process in the same window. Every target is compared with
// its source; a target that differs makes the run, and the program, fail.
//
// docs/benchmarking.md tells what the scenarios are, and how to read the results.
package main
