// SPDX-License-Identifier: Apache-2.0

package file

import (
	"context"
	"math"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/blkmirror/blkmirror/block"
)

const (
	maxOffset = math.MaxInt64

	statusData = block.StatusData | block.StatusAllocated
	statusHole = block.StatusZero | block.StatusAllocated
)

// dataExtent remembers the last extent of data that the kernel told of. To call data what has become a hole since is
// always right, only less sparse; so nobody has to be stopped while the answer is on its way. Holes are never kept.
type dataExtent struct {
	mu struct {
		sync.Mutex
		off, end int64
		forgets  int // calls of forget so far
	}
}

// find says how far data is known to reach from off, else that it does not know and at which count of forgets.
func (e *dataExtent) find(off int64) (end int64, forgets int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.mu.off <= off && off < e.mu.end {
		return e.mu.end, e.mu.forgets
	}
	return 0, e.mu.forgets
}

// keep remembers an extent that was looked up when the count of forgets was as given.
func (e *dataExtent) keep(off, end int64, forgets int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if forgets == e.mu.forgets {
		e.mu.off, e.mu.end = off, end
	}
}

// forget is told of a range that may have become a hole.
func (e *dataExtent) forget(off, n int64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.mu.forgets++
	if off < e.mu.end && e.mu.off-off < n {
		e.mu.off, e.mu.end = 0, 0
	}
}

// BlockStatus asks the kernel whether there is data or a hole.
func (f *File) BlockStatus(_ context.Context, off, n int64) (block.Extent, error) {
	data := func(end int64) (block.Extent, error) {
		return block.Extent{Len: min(end-off, n), Status: statusData}, nil
	}
	if f.noSeek.Load() || f.options.HostDevice {
		return data(off + n)
	}
	known, forgets := f.extent.find(off)
	if known > 0 {
		return data(known)
	}
	start, err := unix.Seek(f.fd, off, unix.SEEK_DATA)
	switch {
	case err == unix.ENXIO: // nothing but a hole up to the end of the file
		return block.Extent{Len: n, Status: statusHole}, nil
	case err != nil:
		if unsupported(err) {
			f.noSeek.Store(true)
		}
		return data(off + n)
	case start > off:
		return block.Extent{Len: min(start-off, n), Status: statusHole}, nil
	}
	end, err := unix.Seek(f.fd, off, unix.SEEK_HOLE)
	if err != nil || end <= off { // made a hole or cut off in between
		return data(off + n)
	}
	end = (end + 511) &^ 511 // the rest of the last sector, when the file ends inside it
	f.extent.keep(off, end, forgets)
	return data(end)
}
