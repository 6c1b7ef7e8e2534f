// SPDX-License-Identifier: Apache-2.0

package file

import (
	"context"
	"errors"

	"golang.org/x/sys/unix"

	"github.com/blkmirror/blkmirror/block"
)

var _ block.RangeCopier = (*File)(nil)

// cloneUnit is what ranges that are cloned are aligned to: the block size of the file systems that can do that, on most machines.
const cloneUnit = 4096

var (
	errTaken     = errors.New("the range takes space already")
	errUnaligned = errors.New("the range has no whole blocks")
	errShort     = errors.New("the source file ends before the range")
)

// CopyRange has the file system share the extents of another image (FICLONERANGE), or else copies inside the kernel
// (copy_file_range). The latter goes through the page cache, so with O_DIRECT on either side it is not done.
func (f *File) CopyRange(ctx context.Context, from block.Driver, fromOff, off, n int64, share bool) (copied int64, how block.Offload,
	err error) {
	source, ok := from.(*File)
	if !ok || f.options.HostDevice || source.options.HostDevice {
		return 0, 0, block.NotSupported
	}
	if f.noMap.Load() {
		return 0, 0, block.NotSupported // nobody knows what was allocated on purpose
	}
	free, taken, err := f.Space(ctx, off, n)
	switch {
	case err != nil:
		return 0, 0, err
	case f.noMap.Load():
		return 0, 0, block.NotSupported
	case taken:
		return 0, 0, errTaken
	}
	n = free
	if share && f.noClone.Load() != source {
		copied, err = f.clone(source, fromOff, off, n)
		if copied > 0 {
			return copied, block.OffloadCloned, nil
		}
	}
	if f.options.Direct || source.options.Direct || f.noCopy.Load() == source {
		if err == nil || f.noClone.Load() == source {
			err = block.NotSupported
		}
		return 0, 0, err
	}
	if f.long(n) {
		f.turn.Lock()
		defer f.turn.Unlock()
	}
	copied, err = f.copyFrom(source, fromOff, off, n)
	return copied, block.OffloadCopied, err
}

// clone shares whole blocks; none is copied where the range has none.
func (f *File) clone(source *File, fromOff, off, n int64) (copied int64, err error) {
	if (fromOff|off)&(cloneUnit-1) != 0 {
		return 0, errUnaligned
	}
	if n &^= cloneUnit - 1; n == 0 {
		return 0, errUnaligned
	}
	for {
		err = unix.IoctlFileCloneRange(f.fd, &unix.FileCloneRange{
			Src_fd: int64(source.fd), Src_offset: uint64(fromOff), Src_length: uint64(n), Dest_offset: uint64(off)})
		switch {
		case err == nil:
			return n, nil
		case err == unix.EINTR:
			continue
		case unsupported(err) && err != unix.EINVAL, err == unix.EXDEV, err == unix.EPERM, err == unix.ETXTBSY:
			f.noClone.Store(source)
		}
		return 0, err
	}
}

// copyFrom copies what the kernel does at one go.
func (f *File) copyFrom(source *File, fromOff, off, n int64) (copied int64, err error) {
	for {
		k, err := unix.CopyFileRange(source.fd, &fromOff, f.fd, &off, int(n), 0)
		switch {
		case err == unix.EINTR:
			continue
		case err == nil && k == 0:
			return 0, errShort
		case err == nil:
			return int64(k), nil
		case unsupported(err), err == unix.EXDEV, err == unix.EPERM, err == unix.ETXTBSY:
			f.noCopy.Store(source)
			return 0, block.NotSupported
		}
		return 0, err
	}
}
