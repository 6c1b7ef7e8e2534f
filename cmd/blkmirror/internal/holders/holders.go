// SPDX-License-Identifier: Apache-2.0

// Package holders finds out which processes have an image open, and what they do with it.
//
// QEMU and we lock single bytes of an image for what we need of it and for what we do not share (docs/locking.md). A lock itself
// does not say whose it is: it belongs to an open file, not to a process. But /proc/PID/fdinfo lists the locks of each open file
// (proc_pid_fdinfo(5)), for the processes of the same user, and for root those of all. So an empty answer of anybody but root may
// have missed somebody.
package holders

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Perm are permissions, one bit each.
type Perm uint8

// The permissions, by their number in the lock bytes.
const (
	ConsistentRead Perm = 1 << iota
	Write
	WriteUnchanged
	Resize
)

// Where the lock bytes of used and of denied permissions begin in an image.
const (
	usedBytes   = 100
	deniedBytes = 200
)

var names = []string{"reads", "writes", "writes what is there already", "resizes"}

// Holder is a process that has an image open.
type Holder struct {
	PID     int
	Command string // its name, as ps shows it
	Uses    Perm
	Denies  Perm // what it does not share
}

func (h Holder) String() string {
	var does []string
	for i, name := range names {
		if h.Uses&(1<<i) != 0 {
			does = append(does, name)
		}
	}
	if does == nil {
		does = []string{"has it open"}
	}
	return fmt.Sprintf("%s (process %d) %s", h.Command, h.PID, strings.Join(does, ", "))
}

// Find lists the processes that have a file open and that we may look at, but for one (0 for none), and for ourselves.
func Find(path string, except int) ([]Holder, error) {
	file, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	processes, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	var list []Holder
	for _, process := range processes {
		pid, err := strconv.Atoi(filepath.Base(process))
		if err != nil || pid == except || pid == os.Getpid() {
			continue
		}
		if h, ok := look(process, file); ok {
			h.PID = pid
			list = append(list, h)
		}
	}
	return list, nil
}

// look tells what a process does with a file. One that ends meanwhile, or that is not ours to look at, does nothing with it.
func look(process string, file os.FileInfo) (h Holder, found bool) {
	open, err := os.ReadDir(filepath.Join(process, "fd"))
	if err != nil {
		return h, false
	}
	for _, fd := range open {
		other, err := os.Stat(filepath.Join(process, "fd", fd.Name()))
		if err != nil || !os.SameFile(file, other) {
			continue
		}
		found = true
		if info, err := os.ReadFile(filepath.Join(process, "fdinfo", fd.Name())); err == nil {
			uses, denies := locks(info)
			h.Uses |= uses
			h.Denies |= denies
		}
	}
	if found {
		name, err := os.ReadFile(filepath.Join(process, "comm"))
		if err != nil {
			return h, false // it has ended
		}
		h.Command = strings.TrimSpace(string(name))
	}
	return h, found
}

// locks reads the lines of a fdinfo file that are about locks:
//
//	lock:	1: OFDLCK ADVISORY  READ -1 00:2d:1234 100 101
func locks(info []byte) (uses, denies Perm) {
	for lines := bufio.NewScanner(bytes.NewReader(info)); lines.Scan(); {
		words := strings.Fields(lines.Text())
		if len(words) != 9 || words[0] != "lock:" || words[2] != "OFDLCK" {
			continue
		}
		from, err := strconv.ParseInt(words[7], 10, 64)
		if err != nil {
			continue
		}
		to, err := strconv.ParseInt(words[8], 10, 64) // EOF, and whatever else is too large, is of no use to us
		if err != nil {
			continue
		}
		for i := range names {
			bit := int64(i)
			if from <= usedBytes+bit && usedBytes+bit <= to {
				uses |= 1 << i
			}
			if from <= deniedBytes+bit && deniedBytes+bit <= to {
				denies |= 1 << i
			}
		}
	}
	return uses, denies
}
