// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/blkmirror/blkmirror/daemon/guest/internal/workload"
)

const (
	// atOnce is how many operations are under way at the same time.
	atOnce = 4
	// readsPerGroup is how many places are read back after each group.
	readsPerGroup = 8
	// bufferBytes is the size of the largest write, and of what is read back at a time.
	bufferBytes = 64 << 10
)

// disk is a block device, past the page cache.
type disk struct {
	file    *os.File
	size    int64
	buffers [atOnce][]byte // aligned as direct I/O needs it
}

func openDisk(name string) (*disk, error) {
	// Without these the kernel writes zeroes where it is asked to zero, and nothing of what is to be tested would happen.
	for _, power := range []string{"discard_max_bytes", "write_zeroes_max_bytes"} {
		most, err := os.ReadFile("/sys/block/" + name + "/queue/" + power)
		if err != nil {
			return nil, err
		}
		if strings.TrimSpace(string(most)) == "0" {
			return nil, fmt.Errorf("the disk has no %s", power)
		}
	}
	file, err := os.OpenFile("/dev/"+name, os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		return nil, err
	}
	d := &disk{file: file}
	if d.size, err = file.Seek(0, 2); err != nil {
		return nil, err
	}
	for i := range d.buffers {
		if d.buffers[i], err = unix.Mmap(-1, 0, bufferBytes, unix.PROT_READ|unix.PROT_WRITE,
			unix.MAP_ANON|unix.MAP_PRIVATE); err != nil {
			return nil, err
		}
	}
	return d, nil
}

// carryOut performs the operations of a group, several at a time, and flushes.
func (d *disk) carryOut(group []workload.Op) error {
	work := make(chan workload.Op)
	ended := make(chan error)
	for _, buffer := range d.buffers {
		go func() {
			var first error
			for op := range work {
				if err := d.perform(op, buffer); err != nil && first == nil {
					first = fmt.Errorf("%+v: %w", op, err)
				}
			}
			ended <- first
		}()
	}
	for _, op := range group {
		work <- op
	}
	close(work)
	var all error
	for range d.buffers {
		all = errors.Join(all, <-ended)
	}
	if err := d.file.Sync(); err != nil {
		all = errors.Join(all, fmt.Errorf("flush: %w", err))
	}
	return all
}

func (d *disk) perform(op workload.Op, buffer []byte) error {
	offset, length := op.First*workload.SectorBytes, op.Count*workload.SectorBytes
	fd := int(d.file.Fd())
	switch op.Kind {
	case workload.Zero:
		return d.tell(unix.BLKZEROOUT, offset, length)
	case workload.Discard:
		return d.tell(unix.BLKDISCARD, offset, length)
	case workload.Punch:
		return unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, offset, length)
	}
	data := buffer[:length]
	workload.Fill(data, op.Version, op.First)
	_, err := d.file.WriteAt(data, offset)
	return err
}

// tell does an ioctl whose argument is a range of bytes.
func (d *disk) tell(request uintptr, offset, length int64) error {
	at := [2]uint64{uint64(offset), uint64(length)}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, d.file.Fd(), request, uintptr(unsafe.Pointer(&at))); errno != 0 {
		return errno
	}
	return nil
}

// readBack reads some places and compares them with what must be there.
func (d *disk) readBack(state *workload.Disk) error {
	data := d.buffers[0]
	sectors := int64(len(data) / workload.SectorBytes)
	for range readsPerGroup {
		first := rand.Int64N(state.Sectors() - sectors)
		if _, err := d.file.ReadAt(data, first*workload.SectorBytes); err != nil {
			return err
		}
		if err := state.Check(data, first); err != nil {
			return err
		}
	}
	return nil
}
