// SPDX-License-Identifier: Apache-2.0

package file

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/blkmirror/blkmirror/block"
)

// Locking says whether permissions become locks on the image.
type Locking uint8

// The values of locking.
const (
	LockingAuto Locking = iota // if the kernel can
	LockingOn                  // or fail
	LockingOff
)

// AIO is the way in which I/O is submitted. All ways are one engine here; the choice is checked and kept.
type AIO uint8

// The values of aio.
const (
	AIOThreads AIO = iota
	AIONative
	AIOURing
)

// Options say what to open and how.
type Options struct {
	Filename     string
	HostDevice   bool // a block or character device, not a regular file
	ReadOnly     bool
	AutoReadOnly bool // open read-write only while a user of the node writes
	Direct       bool // bypass the page cache (O_DIRECT)
	Locking      Locking
	ForceShare   bool // hold no locks and check none
	AIO          AIO
}

func (o Options) driverName() string {
	if o.HostDevice {
		return "host_device"
	}
	return "file"
}

// File is an open image.
type File struct {
	options  Options
	fd       int
	device   bool // a block device
	align    int64
	memAlign int
	size     atomic.Int64

	// What the kernel turned out not to do for this image.
	noPunch, noZeroRange, noAllocate, noSeek, noMap, noZeroOut, noDiscard atomic.Bool

	noClone, noCopy atomic.Pointer[File] // the image that the kernel does not clone from, or copy from, into this one

	flushError atomic.Pointer[error] // of a flush that lost pages

	extent dataExtent

	turn sync.Mutex // held around a long write, see long

	// Changed by SetPermissions only, of which one runs at a time.
	held     locks
	noLocks  bool
	writable bool

	closing sync.Once
}

// Open opens the image.
func Open(o Options) (*File, error) {
	if o.Filename == "" {
		return nil, invalid("The '%s' block driver requires a file name", o.driverName())
	}
	if o.AIO == AIONative && !o.Direct {
		return nil, invalid("aio=native was specified, but it requires cache.direct=on, which was not specified.")
	}
	f := &File{options: o, noLocks: o.Locking == LockingOff || o.ForceShare}
	f.writable = !o.ReadOnly && !o.AutoReadOnly
	fd, err := openFile(o.Filename, f.openFlags(f.writable), 0)
	if err != nil {
		if o.Direct && errors.Is(err, unix.EINVAL) {
			return nil, invalid("Could not open '%s': filesystem does not support O_DIRECT", o.Filename)
		}
		return nil, couldNot("open", o.Filename, err)
	}
	f.fd = fd
	if err := f.inspect(); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	return f, nil
}

// inspect finds out what kind of file was opened, how long it is and how its I/O must be aligned.
func (f *File) inspect() error {
	var st unix.Stat_t
	if err := unix.Fstat(f.fd, &st); err != nil {
		return couldNot("open", f.options.Filename, err)
	}
	kind := st.Mode & unix.S_IFMT
	f.device = kind == unix.S_IFBLK
	switch {
	case kind == unix.S_IFDIR:
		return couldNot("open", f.options.Filename, unix.EISDIR)
	case !f.options.HostDevice && kind != unix.S_IFREG:
		return invalid("'file' driver requires '%s' to be a regular file", f.options.Filename)
	case f.options.HostDevice && kind != unix.S_IFBLK && kind != unix.S_IFCHR:
		return invalid("'host_device' driver requires '%s' to be either a character or block device", f.options.Filename)
	}
	if err := clearNonblock(f.fd); err != nil {
		return couldNot("open", f.options.Filename, err)
	}
	size, err := length(f.fd, &st)
	if err != nil {
		return fmt.Errorf("Could not get the size of '%s': %w", f.options.Filename, message(err))
	}
	f.size.Store((size + 511) &^ 511)
	f.align, f.memAlign = 1, 1
	if f.options.Direct {
		f.align, f.memAlign, err = directAlignment(f.fd, f.device, size)
		if err != nil {
			return invalid("Could not find working O_DIRECT alignment for '%s': %w", f.options.Filename, message(err))
		}
	}
	if f.options.Locking == LockingOn && !f.noLocks && !locksWork(f.fd) {
		return notSupported("Could not lock '%s': the kernel has no locks of open file descriptions here", f.options.Filename)
	}
	if f.options.Locking == LockingAuto && !f.noLocks {
		f.noLocks = !locksWork(f.fd)
	}
	return nil
}

func (f *File) openFlags(writable bool) int {
	flags := unix.O_RDONLY
	if writable {
		flags = unix.O_RDWR
	}
	if f.options.Direct {
		flags |= unix.O_DIRECT
	}
	return flags
}

// openFile opens without waiting for the other end of a pipe, which a name may turn out to be.
func openFile(name string, flags int, mode uint32) (int, error) {
	for {
		fd, err := unix.Open(name, flags|unix.O_CLOEXEC|unix.O_NOCTTY|unix.O_NONBLOCK, mode)
		if err != unix.EINTR {
			return fd, err
		}
	}
}

func clearNonblock(fd int) error {
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_SETFL, flags&^unix.O_NONBLOCK)
	}
	return err
}

// reopen opens the image once more, whatever has become of its name since.
func (f *File) reopen(flags int) (int, error) {
	fd, err := openFile(fmt.Sprintf("/proc/self/fd/%d", f.fd), flags, 0)
	if err == unix.ENOENT { // no /proc here
		fd, err = openFile(f.options.Filename, flags, 0)
		if err == nil && !sameFile(fd, f.fd) {
			_ = unix.Close(fd)
			err = unix.ESTALE
		}
	}
	if err != nil {
		return -1, err
	}
	if err := clearNonblock(fd); err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// SameImage says whether other is open on the same file, whatever the names are.
func (f *File) SameImage(other *File) bool { return sameFile(f.fd, other.fd) }

func sameFile(a, b int) bool {
	var sa, sb unix.Stat_t
	return unix.Fstat(a, &sa) == nil && unix.Fstat(b, &sb) == nil && sa.Dev == sb.Dev && sa.Ino == sb.Ino
}

// Close gives up the image and with it all locks.
func (f *File) Close() error {
	var err error
	f.closing.Do(func() { err = unix.Close(f.fd) })
	return err
}

// FileName is the name that the image was opened by.
func (f *File) FileName() string { return f.options.Filename }

// AllocatedBytes is what the image takes on the host.
func (f *File) AllocatedBytes() (int64, error) {
	var st unix.Stat_t
	if err := unix.Fstat(f.fd, &st); err != nil {
		return 0, err
	}
	return st.Blocks * 512, nil
}

// Limits are those of O_DIRECT, if the image was opened so.
func (f *File) Limits() block.Limits {
	return block.Limits{RequestAlign: f.align, MemoryAlign: f.memAlign}
}

var (
	_ block.Driver             = (*File)(nil)
	_ block.ZeroWriter         = (*File)(nil)
	_ block.ZeroUnmapper       = (*File)(nil)
	_ block.Discarder          = (*File)(nil)
	_ block.StatusReporter     = (*File)(nil)
	_ block.Resizer            = (*File)(nil)
	_ block.Limiter            = (*File)(nil)
	_ block.PermissionHolder   = (*File)(nil)
	_ block.FileNamer          = (*File)(nil)
	_ block.AllocationReporter = (*File)(nil)
)
