// SPDX-License-Identifier: Apache-2.0

// Blkmirror-torture tries to make blkmirrord lose data: with real files, sockets and processes, and real faults.
//
// A round is a daemon with a disk, guests that write to it by NBD and never stop, a mirror to another disk, and faults at
// random moments: processes are killed and stopped, connections are cut, disks run full, fail, shrink and vanish. Then all
// is healed, the mirror ends, and the images are read, byte by byte:
//
//   - The disk that the guests end with has every write that was acknowledged to them, and nothing that is older. A write
//     whose answer was lost with its connection may be there or not.
//   - When a mirror has ended well, its target is as the source.
//   - After each restart nodes and exports are as before, and the export shows the disk that the guests were given last.
//   - The daemon ends when and as it is told, and says nothing of panics.
//
// What a round does follows from its seed. When threads and processes run does not, so that a seed which failed may have to
// be tried more than once.
//
// Two more modes: "cancel" ends a mirror by force as soon as it is ready, again and again, under guests' writes; "soak" lets many
// mirrors begin and end in one daemon and watches what that daemon holds of memory, descriptors and goroutines.
//
// It starts the processes that it kills, and signals no others.
package main
