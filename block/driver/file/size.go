// SPDX-License-Identifier: Apache-2.0

package file

import (
	"context"
	"errors"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/blkmirror/blkmirror/block"
)

// maxAlign is the largest alignment that O_DIRECT is tried with.
const maxAlign = block.BufferAlign

// length is the exact length of an open file in bytes.
func length(fd int, st *unix.Stat_t) (int64, error) {
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return st.Size, nil
	case unix.S_IFBLK:
		var bytes uint64
		if err := ioctl(fd, unix.BLKGETSIZE64, unsafe.Pointer(&bytes)); err != nil {
			return 0, err
		}
		return int64(bytes), nil
	}
	return unix.Seek(fd, 0, unix.SEEK_END)
}

// ioctl makes a call whose argument is a pointer.
func ioctl(fd int, request uint, arg unsafe.Pointer) error {
	for {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(request), uintptr(arg))
		if errno == 0 {
			return nil
		}
		if errno != unix.EINTR {
			return errno
		}
	}
}

// directAlignment finds out how O_DIRECT wants offsets, lengths and memory to be aligned: the kernel knows, or else the
// smallest read that works tells.
func directAlignment(fd int, device bool, size int64) (align int64, memAlign int, err error) {
	var st unix.Statx_t
	if unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_DIOALIGN, &st) == nil && st.Mask&unix.STATX_DIOALIGN != 0 {
		align, mem := int64(st.Dio_offset_align), int(st.Dio_mem_align)
		if powerOfTwo(align) && powerOfTwo(int64(mem)) && mem <= block.BufferAlign {
			return align, mem, nil
		}
	}
	if device {
		if sector, err := unix.IoctlGetInt(fd, unix.BLKSSZGET); err == nil && powerOfTwo(int64(sector)) {
			return int64(sector), max(sector, 512), nil
		}
	}
	if size == 0 { // nothing to try it with
		return maxAlign, maxAlign, nil
	}
	b := block.GetBuffer(maxAlign)
	defer b.Release()
	for align := int64(512); align <= maxAlign; align *= 2 {
		if _, err = pread(fd, b.B[:align], 0); !errors.Is(err, unix.EINVAL) {
			return align, maxAlign, err
		}
	}
	return 0, 0, err
}

func powerOfTwo(n int64) bool { return n > 0 && n&(n-1) == 0 }

// Size is the length of the disk: that of the file in whole sectors.
func (f *File) Size() int64 { return f.size.Load() }

// Resize changes the length of a regular file. A device changes its length outside; Resize then takes note of it.
func (f *File) Resize(_ context.Context, size int64) error {
	var st unix.Stat_t
	if err := unix.Fstat(f.fd, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		actual, err := length(f.fd, &st)
		if err != nil {
			return err
		}
		if size != actual {
			return &block.Error{Kind: block.KindNotSupported, Op: block.OpGraph, Err: errDeviceResize}
		}
		f.size.Store(size)
		return nil
	}
	if err := truncate(f.fd, size); err != nil {
		return err
	}
	f.size.Store(size)
	f.extent.forget(0, maxOffset)
	return nil
}

var errDeviceResize = errors.New("Cannot resize device files")

func truncate(fd int, size int64) error {
	for {
		if err := unix.Ftruncate(fd, size); err != unix.EINTR {
			return err
		}
	}
}
