// SPDX-License-Identifier: Apache-2.0

package file

import (
	"context"
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/blkmirror/blkmirror/block"
)

// Preallocation is how much of the space a new image gets at once.
type Preallocation uint8

// The values of preallocation.
const (
	PreallocationOff      Preallocation = iota
	PreallocationMetadata               // only formats have that
	PreallocationFalloc                 // the file system reserves the space
	PreallocationFull                   // zeroes are written
)

func (p Preallocation) String() string { return [...]string{"off", "metadata", "falloc", "full"}[p] }

// CreateOptions describe a new image.
type CreateOptions struct {
	Filename      string
	Size          int64 // bytes, rounded up to whole sectors
	Preallocation Preallocation
	NoCOW         bool                    // ask the file system not to copy on write; it may decline
	Progress      func(done, total int64) // told of bytes preallocated; may be nil
}

const (
	createMode = 0o644
	zeroChunk  = 1 << 20
	// probedStart is written even where space is only reserved, so that whoever looks for O_DIRECT's alignment, or for a
	// format, reads data there.
	probedStart = 4096
	nocowFlag   = 0x00800000 // FS_NOCOW_FL
)

// Create makes an image or empties the one that is there. It fails if a process uses that in a way that does not go
// with writing and resizing. When the preallocation fails or ctx ends, an empty file is left.
func Create(ctx context.Context, o CreateOptions) error {
	switch {
	case o.Filename == "":
		return invalid("The 'file' block driver requires a file name")
	case o.Size < 0:
		return invalid("The image size cannot be negative: %d", o.Size)
	case o.Size > maxOffset-511:
		return invalid("The image size is too large: %d", o.Size)
	case o.Preallocation == PreallocationMetadata || o.Preallocation > PreallocationFull:
		return invalid("Unsupported preallocation mode: %s", o.Preallocation)
	}
	o.Size = (o.Size + 511) &^ 511
	if o.Progress == nil {
		o.Progress = func(int64, int64) {}
	}
	fd, err := openFile(o.Filename, unix.O_RDWR|unix.O_CREAT, createMode)
	if err != nil {
		return couldNot("create", o.Filename, err)
	}
	err = fill(ctx, fd, o)
	if closeErr := unix.Close(fd); err == nil && closeErr != nil {
		err = couldNot("create", o.Filename, closeErr)
	}
	return err
}

func fill(ctx context.Context, fd int, o CreateOptions) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return couldNot("create", o.Filename, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return invalid("Could not create '%s': it is not a regular file", o.Filename)
	}
	if locksWork(fd) {
		use := locks{block.PermWrite | block.PermResize, block.PermResize}
		if err := takeLocks(fd, use, o.Filename); err != nil {
			return err
		}
	}
	if err := truncate(fd, 0); err != nil {
		return fmt.Errorf("Could not clear the file '%s': %w", o.Filename, message(err))
	}
	if o.NoCOW {
		avoidCopyOnWrite(fd)
	}
	err := preallocate(ctx, fd, o)
	if err != nil {
		err = errors.Join(err, truncate(fd, 0))
	}
	return err
}

func preallocate(ctx context.Context, fd int, o CreateOptions) error {
	switch o.Preallocation {
	case PreallocationFalloc:
		if o.Size == 0 {
			return nil
		}
		if err := allocateAll(ctx, fd, o); err != nil {
			return err
		}
		if err := writeZeroes(ctx, fd, min(o.Size, probedStart), func(int64) {}); err != nil {
			return fmt.Errorf("Could not write zeroes into the new file: %w", message(err))
		}
		return nil
	case PreallocationFull:
		err := writeZeroes(ctx, fd, o.Size, func(done int64) { o.Progress(done, o.Size) })
		if err == nil {
			err = unix.Fsync(fd)
		}
		if err != nil {
			return fmt.Errorf("Could not write zeroes into the new file: %w", message(err))
		}
		return nil
	}
	if err := truncate(fd, o.Size); err != nil {
		return fmt.Errorf("Could not resize file: %w", message(err))
	}
	return nil
}

// allocateAll reserves the space in steps, because the kernel does not look at ctx.
func allocateAll(ctx context.Context, fd int, o CreateOptions) error {
	const step = 1 << 30
	for off := int64(0); off < o.Size; {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		n := min(o.Size-off, step)
		err := unix.Fallocate(fd, allocate, off, n)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("Could not preallocate data for the new file: %w", message(err))
		}
		off += n
		o.Progress(off, o.Size)
	}
	return nil
}

func writeZeroes(ctx context.Context, fd int, size int64, progress func(done int64)) error {
	b := block.GetBuffer(zeroChunk)
	defer b.Release()
	clear(b.B)
	for off := int64(0); off < size; {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		n := min(size-off, zeroChunk)
		if err := pwrite(fd, b.B[:n], off); err != nil {
			return err
		}
		off += n
		progress(off)
	}
	return nil
}

// avoidCopyOnWrite is a hint: file systems that do not copy on write do not know it.
func avoidCopyOnWrite(fd int) {
	flags, err := unix.IoctlGetUint32(fd, unix.FS_IOC_GETFLAGS)
	if err == nil {
		long := uint64(flags | nocowFlag) // the kernel reads 32 bits of it, its number says a long
		_ = ioctl(fd, unix.FS_IOC_SETFLAGS, unsafe.Pointer(&long))
	}
}
