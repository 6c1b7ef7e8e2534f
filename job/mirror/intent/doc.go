// SPDX-License-Identifier: Apache-2.0

// Package intent keeps, in a file, which regions of a mirror's disks may differ, so that a mirror can go on after its process was
// killed or its host lost power. The file is always a superset of the truth:
//
//	in the file ⊇ dirty ∪ being copied ∪ being written by guests ∪ (written to either disk and not flushed since, if asked for)
//
// A region is far larger than a chunk of the mirror, and its bit is cleared long after the region became clean, so that the file
// changes rarely:
//
//	         Mark: record written before the guest's write goes on
//	clean ───────────────────────────────────────────────────────► marked ──► hot: in a list, least recently written last
//	  ▲                                                                             │
//	  └──────────── Retire: nothing in it is dirty, claimed or being written ◄──────┘
//
// The file is a header and records of 512 bytes, each written by one pwrite: that survives the death of the process, and it
// reports a full disk. With durability [Host] a record is also made durable before Mark returns.
//
//	0      header: who the disks are, which boot, the phase, the size of regions
//	4096   records: 3968 regions each, a sequence number, a checksum
//
// In phase [Scanning] what the records say is of no meaning: everything is dirty. That is the phase that a mirror begins with, and
// the one that a file goes back to when a record cannot be written. A file that cannot be trusted is never guessed at: a damaged
// record makes its regions dirty, anything else that is wrong makes everything dirty, and [Load] says what it was.
//
// The package knows no mirror and no node. Its locks are taken before that of the mirror's planner.
package intent
