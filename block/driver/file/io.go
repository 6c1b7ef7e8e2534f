// SPDX-License-Identifier: Apache-2.0

package file

import (
	"context"
	"io"

	"golang.org/x/sys/unix"

	"github.com/blkmirror/blkmirror/block"
)

func pread(fd int, p []byte, off int64) (int, error) {
	for {
		n, err := unix.Pread(fd, p, off)
		if err != unix.EINTR {
			return n, err
		}
	}
}

func pwrite(fd int, p []byte, off int64) error {
	for len(p) > 0 {
		n, err := unix.Pwrite(fd, p, off)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return err
		case n == 0:
			return io.ErrShortWrite
		default:
			p, off = p[n:], off+int64(n)
		}
	}
	return nil
}

// ReadAt fills p. What is behind the end of the file reads as zeroes.
func (f *File) ReadAt(_ context.Context, p []byte, off int64) error {
	for len(p) > 0 {
		n, err := pread(f.fd, p, off)
		if err != nil {
			return err
		}
		p, off = p[n:], off+int64(n)
		// O_DIRECT stops inside an aligned unit at the end of the file only, and could not go on from there.
		if n == 0 || int64(n)&(f.align-1) != 0 {
			clear(p)
			return nil
		}
	}
	return nil
}

// bulk is the length from which writes through the page cache take turns. Guests' requests are shorter: for those it takes longer to wake a
// thread than to wait for the one before.
const bulk = 512 << 10

// long says whether a write of n bytes takes its turn (File.turn). A file system with a page cache writes to a file one request at a
// time, and others that come spin on their processors while its data is copied.
func (f *File) long(n int64) bool { return n >= bulk && !f.options.Direct && !f.options.HostDevice }

// WriteAt writes p.
func (f *File) WriteAt(_ context.Context, p []byte, off int64, flags block.Flags) error {
	err := f.put(p, off)
	if err == nil && flags&block.FUA != 0 {
		err = f.sync()
	}
	return err
}

func (f *File) put(p []byte, off int64) error {
	if f.long(int64(len(p))) {
		f.turn.Lock()
		defer f.turn.Unlock()
	}
	if over := off + int64(len(p)) - f.size.Load(); over > 0 {
		return f.writeTail(p[:int64(len(p))-over], off)
	}
	return pwrite(f.fd, p, off)
}

// writeTail writes the end of a disk whose length is not a multiple of what O_DIRECT wants. It goes through the page
// cache, so that the file does not grow; the kernel keeps that coherent with direct I/O on the same file.
func (f *File) writeTail(p []byte, off int64) error {
	fd, err := f.reopen(unix.O_WRONLY)
	if err != nil {
		return err
	}
	err = pwrite(fd, p, off)
	if closeErr := unix.Close(fd); err == nil {
		err = closeErr
	}
	return err
}

// Flush makes all writes that returned durable.
func (f *File) Flush(context.Context) error { return f.sync() }

// sync makes everything durable. When the kernel failed to write pages of its cache it says so once and calls them clean
// from then on, so a later success would be a lie: without O_DIRECT the failure stays until ForgiveLoss.
func (f *File) sync() error {
	if failed := f.flushError.Load(); failed != nil {
		return *failed
	}
	for {
		err := unix.Fdatasync(f.fd)
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EINVAL && f.options.HostDevice: // a character device has nothing to sync
			return nil
		case err != nil && !f.options.Direct:
			f.flushError.Store(&err)
		}
		return err
	}
}

// ForgiveLoss lets flushes succeed again after one failed: whoever calls it writes anew what may have been lost.
func (f *File) ForgiveLoss() { f.flushError.Store(nil) }
