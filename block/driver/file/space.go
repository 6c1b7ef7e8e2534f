// SPDX-License-Identifier: Apache-2.0

package file

import (
	"context"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The request FS_IOC_FIEMAP and its argument with room for one extent: Linux, Documentation/filesystems/fiemap.rst.
const fsIOCFiemap = 0xC020660B

type fiemapOne struct {
	start, length     uint64 // asked about, bytes
	flags, mapped     uint32
	extents, reserved uint32
	logical, physical uint64 // of the extent, bytes
	extentLength      uint64
	reserved64        [2]uint64
	extentFlags       uint32
	reserved32        [3]uint32
}

// Space asks the file system for the extents of the image, those that were never written among them. SEEK_HOLE would not do:
// it calls them holes.
func (f *File) Space(_ context.Context, off, n int64) (length int64, taken bool, err error) {
	if f.options.HostDevice || f.noMap.Load() {
		return n, true, nil
	}
	m := fiemapOne{start: uint64(off), length: uint64(n), extents: 1}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(f.fd), fsIOCFiemap, uintptr(unsafe.Pointer(&m)))
	switch {
	case errno == 0:
	case unsupported(errno):
		f.noMap.Store(true)
		return n, true, nil
	default:
		return 0, false, errno
	}
	if m.mapped == 0 {
		return n, false, nil
	}
	start, end := int64(m.logical), int64(m.logical+m.extentLength)
	if start > off {
		return min(start-off, n), false, nil
	}
	return min(max(end-off, 1), n), true, nil
}
