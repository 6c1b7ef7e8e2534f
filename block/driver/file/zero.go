// SPDX-License-Identifier: Apache-2.0

package file

import (
	"context"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/blkmirror/blkmirror/block"
)

const (
	punchHole = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE
	zeroRange = unix.FALLOC_FL_ZERO_RANGE
	allocate  = 0
)

// fallocate works on a range that lies within the disk, so that modes without KEEP_SIZE extend a file to at most the
// length of the disk. What the kernel does not support is remembered in no.
func (f *File) fallocate(no *atomic.Bool, mode uint32, off, n int64) error {
	if no.Load() {
		return block.NotSupported
	}
	for {
		err := unix.Fallocate(f.fd, mode, off, n)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil && unsupported(err):
			// A device says EINVAL to a range that is not made of whole sectors, which says nothing about the next one.
			if !f.device || err != unix.EINVAL {
				no.Store(true)
			}
			return block.NotSupported
		}
		return err
	}
}

// WriteZeroes makes a range read as zeroes, as a hole where the flags allow it.
func (f *File) WriteZeroes(_ context.Context, off, n int64, flags block.Flags) error {
	var err error
	if f.device {
		err = f.zeroDevice(off, n, flags)
	} else {
		err = f.zeroFile(off, n, flags)
	}
	f.extent.forget(off, n)
	if err == nil && flags&block.FUA != 0 {
		err = f.sync()
	}
	return err
}

func (f *File) zeroFile(off, n int64, flags block.Flags) error {
	if flags&block.MayUnmap != 0 {
		if err := f.fallocate(&f.noPunch, punchHole, off, n); err != block.NotSupported {
			return err
		}
	}
	if err := f.fallocate(&f.noZeroRange, zeroRange, off, n); err != block.NotSupported {
		return err
	}
	if f.noAllocate.Load() {
		return block.NotSupported
	}
	if err := f.fallocate(&f.noPunch, punchHole, off, n); err != nil {
		return err
	}
	return f.fallocate(&f.noAllocate, allocate, off, n)
}

func (f *File) zeroDevice(off, n int64, flags block.Flags) error {
	if flags&block.MayUnmap != 0 {
		if err := f.fallocate(&f.noPunch, punchHole, off, n); err != block.NotSupported {
			return err
		}
	}
	if flags&block.NoFallback != 0 {
		return block.NotSupported // the kernel may write, and does not tell
	}
	return f.rangeIoctl(&f.noZeroOut, unix.BLKZEROOUT, off, n)
}

// rangeIoctl sends a block device one of the calls that take an offset and a length.
func (f *File) rangeIoctl(no *atomic.Bool, request uint, off, n int64) error {
	if no.Load() {
		return block.NotSupported
	}
	args := [2]uint64{uint64(off), uint64(n)}
	err := ioctl(f.fd, request, unsafe.Pointer(&args))
	if err != nil && unsupported(err) {
		if err != unix.EINVAL {
			no.Store(true)
		}
		return block.NotSupported
	}
	return err
}

// CanZeroUnmap says whether a write of zeroes can make a hole.
func (f *File) CanZeroUnmap() bool { return !f.noPunch.Load() }

// Discard frees a range. That of a regular file reads as zeroes afterwards.
func (f *File) Discard(_ context.Context, off, n int64) error {
	defer f.extent.forget(off, n)
	if f.device {
		return f.rangeIoctl(&f.noDiscard, unix.BLKDISCARD, off, n)
	}
	return f.fallocate(&f.noPunch, punchHole, off, n)
}
