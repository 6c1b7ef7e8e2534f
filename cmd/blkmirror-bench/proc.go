// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// cpuTime is the processor time of a process, user and system, of all its threads, ended ones included. It is the value of
// the process's clock (clock_getcpuclockid(3)), which /proc/PID/stat has only in hundredths of a second.
func cpuTime(pid int) (time.Duration, error) {
	var t unix.Timespec
	const clockSched = 2 // of the three clocks that a process has
	if err := unix.ClockGettime(int32(^pid<<3|clockSched), &t); err != nil {
		return 0, fmt.Errorf("processor time of process %d: %w", pid, err)
	}
	return time.Duration(t.Nano()), nil
}

// memory reads a value of /proc/PID/status in bytes: VmRSS is what a process has in memory, VmHWM the most it ever had.
func memory(pid int, key string) (int64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	return kibibytes(text, key)
}

// kibibytes reads a line such as "VmRSS:  123 kB".
func kibibytes(text []byte, key string) (int64, error) {
	for line := range bytes.Lines(text) {
		if value, ok := bytes.CutPrefix(line, []byte(key+":")); ok {
			fields := bytes.Fields(value)
			if len(fields) != 2 {
				break
			}
			n, err := strconv.ParseInt(string(fields[0]), 10, 64)
			return n << 10, err
		}
	}
	return 0, fmt.Errorf("there is no %s", key)
}

// available is how much memory can be had without pushing out anything else.
func available() int64 {
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0
	}
	n, err := kibibytes(text, "MemAvailable")
	if err != nil {
		return 0
	}
	return n
}

// warm touches memory and gives it back, so that the run that follows gets pages which the machine, if it is a virtual
// one, has already been given. The first touch of a page may cost several times what copying into it does, and the order
// of runs would decide who pays. The pages are those of a file in a folder, as the target's will be: file systems take larger
// pieces of memory than processes do. The file is gone before anything of it is written to a disk, or soon after.
func warm(folder string, size int64) error {
	f, err := os.CreateTemp(folder, "warm")
	if err != nil {
		return err
	}
	err = os.Remove(f.Name())
	zeroes := make([]byte, 4*mib)
	for left := min(size+64*mib, available()/4, 4*gib); left > 0 && err == nil; left -= int64(len(zeroes)) {
		_, err = f.Write(zeroes)
	}
	return errors.Join(err, f.Close())
}

// loadAverage is that of the last minute; -1 if unknown.
func loadAverage() float64 {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return -1
	}
	field, _, _ := strings.Cut(string(text), " ")
	v, err := strconv.ParseFloat(field, 64)
	if err != nil {
		return -1
	}
	return v
}

// cpuModel is the name of the processors.
func cpuModel() string {
	text, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(text)) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return runtime.GOARCH
}

func kernel() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "unknown"
	}
	return unix.ByteSliceToString(u.Sysname[:]) + " " + unix.ByteSliceToString(u.Release[:])
}

// fileSystem names the file system of a folder.
func fileSystem(folder string) string {
	var s unix.Statfs_t
	if err := unix.Statfs(folder, &s); err != nil {
		return "unknown"
	}
	switch uint32(s.Type) {
	case unix.EXT4_SUPER_MAGIC:
		return "ext4"
	case unix.XFS_SUPER_MAGIC:
		return "xfs"
	case unix.TMPFS_MAGIC:
		return "tmpfs"
	case unix.BTRFS_SUPER_MAGIC:
		return "btrfs"
	case unix.OVERLAYFS_SUPER_MAGIC:
		return "overlayfs"
	default:
		return fmt.Sprintf("%#x", uint32(s.Type))
	}
}
