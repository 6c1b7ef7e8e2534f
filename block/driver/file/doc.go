// SPDX-License-Identifier: Apache-2.0

// Package file holds the drivers for images that the host's kernel stores: 'file' for regular files, 'host_device' for
// block and character devices.
//
// The disk is as long as the file, rounded up to whole sectors of 512 bytes; what lies behind the end of the file reads
// as zeroes, and writing the rounded tail extends the file. I/O goes straight to the kernel with positioned calls on one
// descriptor, so any number of requests may be under way.
//
// Zeroes and discards are calls to fallocate, of which not every file system knows every mode. A mode that the kernel
// refused is not tried again on the same image; the next one in the row is, and when none is left the driver answers
// [block.NotSupported] and the node writes zero data.
//
//	zeroes, MayUnmap:  PUNCH_HOLE ─► ZERO_RANGE ─► PUNCH_HOLE and allocate
//	zeroes:                          ZERO_RANGE ─► PUNCH_HOLE and allocate
//	on a device:       PUNCH_HOLE (MayUnmap) ─► BLKZEROOUT (not with NoFallback, it may write)
//
// The permissions of the node's users become locks on single bytes of the image, as QEMU knows them: byte 100+n says that
// this process uses permission n, byte 200+n that it does not share it. All locks are read locks of an open file
// description, so they never stop a reader; a conflict is found by asking who holds the opposite byte.
//
// The package does not interpret image formats, does not cache data, and does not watch the file for changes that
// others make.
package file
