// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// abilities are what this machine lets us do.
type abilities struct {
	qcow2   bool // qemu-img is there to make such images, and to read them
	qemuNBD bool
	mounts  bool // small file systems can be mounted
}

// find looks for what the machine lets us do, and says what is missing.
func find(s *settings) (can abilities, missing []string) {
	if can.qcow2 = s.qemuImg != ""; !can.qcow2 {
		missing = append(missing, "qemu-img: no qcow2 images")
	}
	if can.qemuNBD = s.qemuNBD != ""; !can.qemuNBD {
		missing = append(missing, "qemu-nbd: no targets on it")
	}
	err := func() error {
		dir, err := os.MkdirTemp(s.folder, "bmt-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		for _, kind := range []string{mediumTmpfs, mediumExt4, mediumLoop} {
			small, err := mountSmall(kind, filepath.Join(dir, kind), 8<<20)
			if err != nil {
				return err
			}
			if kind == mediumLoop {
				if _, err := small.attach(1 << 20); err != nil {
					return errors.Join(err, small.unmount())
				}
			}
			if err := small.unmount(); err != nil {
				return err
			}
		}
		return nil
	}()
	if can.mounts = err == nil; !can.mounts {
		missing = append(missing, fmt.Sprintf("small file systems: no full disks (%v)", err))
	}
	if _, err := os.Stat("/dev/mapper/control"); err != nil {
		missing = append(missing, "device mapper: errors of disks come from fault nodes alone")
	}
	return can, missing
}

// What an image lies on.
const (
	mediumPlain = "plain" // where everything is
	mediumTmpfs = "tmpfs" // a small file system of its own
	mediumExt4  = "ext4"  // the same
	mediumLoop  = "loop"  // a block device with a cache, whose blocks are a thin file on a small tmpfs: when that is full, written pages are lost
)

// small is a file system that can be filled up.
type small struct {
	folder string
	device string // of a loop; empty once it is detached
}

// mountSmall makes a file system of a size and mounts it on a new folder.
func mountSmall(kind, folder string, size int64) (*small, error) {
	if err := os.Mkdir(folder, 0o700); err != nil {
		return nil, err
	}
	if kind != mediumExt4 {
		s := &small{folder: folder}
		err := unix.Mount("tmpfs", folder, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, fmt.Sprintf("size=%d,mode=0700", size))
		return s, err
	}
	disk := folder + ".disk"
	if err := makeHole(disk, size); err != nil {
		return nil, err
	}
	for _, argv := range [][]string{
		{"mkfs.ext4", "-q", "-F", "-m", "0", "-O", "^has_journal", disk},
		{"mount", "-o", "loop,nosuid,nodev", disk, folder},
	} {
		if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, out)
		}
	}
	return &small{folder: folder}, nil
}

// attach makes a block device of a file of the file system, and names it.
func (s *small) attach(size int64) (string, error) {
	if err := makeHole(s.blocks(), size); err != nil {
		return "", err
	}
	out, err := exec.Command("losetup", "--find", "--show", s.blocks()).Output()
	if err != nil {
		return "", fmt.Errorf("losetup: %w", err)
	}
	s.device = strings.TrimSpace(string(out))
	// Linux 6.18 at least takes a request to a loop device for done of which its file had space for a part. So: a page at a time.
	pages := filepath.Join("/sys/block", filepath.Base(s.device), "queue/max_sectors_kb")
	if err := os.WriteFile(pages, []byte("4"), 0); err != nil {
		return "", errors.Join(err, s.detach())
	}
	return s.device, nil
}

// blocks is the file that has what is really on the block device.
func (s *small) blocks() string { return filepath.Join(s.folder, "blocks") }

// writeBack has the block device's cache written, and lost where there is no space. Whoever has the device open is told with the
// next flush, once.
func (s *small) writeBack() error {
	if s.device == "" {
		return nil
	}
	f, err := os.OpenFile(s.device, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_ = f.Sync() // may fail, that is what it is for
	return nil
}

// detach gives the block device back.
func (s *small) detach() error {
	if s.device == "" {
		return nil
	}
	device := s.device
	s.device = ""
	if out, err := exec.Command("losetup", "--detach", device).CombinedOutput(); err != nil {
		return fmt.Errorf("losetup: %w: %s", err, out)
	}
	return nil
}

func (s *small) filler() string { return filepath.Join(s.folder, "filler") }

// full takes all space that is left.
func (s *small) full() error {
	f, err := os.OpenFile(s.filler(), os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	zeroes := make([]byte, 1<<20)
	for len(zeroes) >= sectorSize {
		n, err := f.Write(zeroes)
		switch {
		case errors.Is(err, syscall.ENOSPC) && n == 0:
			zeroes = zeroes[:len(zeroes)/2]
		case err != nil && !errors.Is(err, syscall.ENOSPC):
			return err
		}
	}
	return nil
}

// heal gives it back.
func (s *small) heal() error { return os.Remove(s.filler()) }

func (s *small) unmount() error {
	if err := s.detach(); err != nil {
		return err
	}
	// A process that was just forked has our files until it becomes another program.
	return until(context.Background(), 5*time.Second, s.folder+" is unmounted", func() (bool, error) {
		err := unix.Unmount(s.folder, 0)
		if errors.Is(err, unix.EBUSY) {
			return false, nil
		}
		return err == nil, err
	})
}
