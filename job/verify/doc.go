// SPDX-License-Identifier: Apache-2.0

// Package verify compares two disks that nobody writes to meanwhile.
//
//	device ──► read ─┐
//	                 ├─ sector by sector: which differ, where is the first
//	target ──► read ─┘
//
// The job needs to read both and lets nobody write to them, so that what it finds holds for as long as it runs. Where both say by their
// block status that they read as zero nothing is read. It goes over the whole disk, also after a difference, and fails at the
// end if there was one.
//
// A mirror compares its own disks while guests write: see package mirror.
package verify
