// SPDX-License-Identifier: Apache-2.0

// Package powerloss ends the daemon, or the host with it, at any step, under the whole stack: commands of QMP over a state
// directory, intent files and images that all lose what was not synced.
//
//	operator ─► commands ─┐                                   ┌─► state, intent files: written sectors and names
//	                      ├─► handlers, graph, jobs, exports ─┤                                                   ├─ one host
//	guests ─► requests ───┘                                   └─► images: written sectors                         ┘
//	   │
//	   └─► journal, which outlives everything
//
// A schedule is a seed. A daemon starts on a host, its operator makes disks, an export, bitmaps and mirrors, and changes and ends
// mirrors, while guests write, zero, trim, flush and read. Then the host ends: at a step of a kind (a name in the folder, a sync, a
// write to a file or an image, a flush) that chance chose, within the start, beside a running mirror, or in the middle of a
// pivot; or after a stop in good order. What is left is
//
//	the process died     all that was written; what was not synced still may be lost later
//	power was lost       what was synced, and of the rest any sectors; of names the first of them that changed, or any
//
// and at times an intent file is damaged or gone. The next daemon starts on that. It must find what an operator was told, with the
// one command that was not answered carried out or not, and with a mirror that was asked to end either there, or over with
// exports and bitmaps where they belong; what guests were told is flushed, on the disk of the export; and, in the end, a target
// that is equal to its source. An intent file that is in order must not cost a full copy. Start, mirror and stop must end.
//
// The clock is that of a bubble of testing/synctest, and all storage is behind one lock, so that a cut is one moment for all of it:
// the daemon that was cut goes on with the storage that it had, unseen, until it is closed. Guests use the node of the export
// and not NBD, whose server has a clock of the kernel's. Not tried here: targets on other hosts, disks that fail, and the system
// calls of the real folder and the file driver; job/mirror and blkmirror-torture do.
//
// The package has nothing but tests. It is one of its own, and not among those of the handlers, because it uses the daemon from
// outside, through what handlers.Config and state.In let anybody put in place of the machine.
package powerloss
