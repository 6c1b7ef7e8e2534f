// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"bufio"
	"bytes"
	"io/fs"
	"math"
	"path"
	"runtime/debug"
	"strconv"
	"strings"
)

// The Go runtime does not look at the limit of its control group: the collector lets the heap grow to twice of what is in use, and
// near the limit the kernel ends the process. With a soft limit a little below, the collector works more instead.

// memoryPart is how much of the control group's limit the runtime may use, in percent. The rest is for stacks of threads, the
// kernel's buffers of sockets, and what else counts there and is not Go's.
const memoryPart = 90

// leastGroup is the smallest limit that is taken as one: below, the collector would do nothing but work.
const leastGroup = 32 << 20

// limitMemory sets the runtime's memory limit from that of the control group, unless the operator set one. It returns the limit that
// was set, or 0.
func limitMemory(root fs.FS, env func(string) string) int64 {
	if env("GOMEMLIMIT") != "" {
		return 0
	}
	limit := groupLimit(root)
	if limit < leastGroup || limit == math.MaxInt64 {
		return 0
	}
	limit = limit / 100 * memoryPart
	debug.SetMemoryLimit(limit)
	return limit
}

// groupLimit is the memory that the control groups of the process leave it, in bytes; math.MaxInt64 if they do not say. root is the
// file system with proc and sys.
func groupLimit(root fs.FS) int64 {
	limit := int64(math.MaxInt64)
	groups, err := fs.ReadFile(root, "proc/self/cgroup")
	if err != nil {
		return limit
	}
	lines := bufio.NewScanner(bytes.NewReader(groups))
	for lines.Scan() {
		// hierarchy:controllers:path; version 2 has the hierarchy 0 and no controllers.
		parts := strings.SplitN(lines.Text(), ":", 3)
		if len(parts) != 3 || !strings.HasPrefix(parts[2], "/") {
			continue
		}
		folder, file := "sys/fs/cgroup", "memory.max"
		switch {
		case parts[0] == "0" && parts[1] == "":
		case strings.Contains(","+parts[1]+",", ",memory,"):
			folder, file = "sys/fs/cgroup/memory", "memory.limit_in_bytes"
		default:
			continue
		}
		// A group has no more than those above it. In a container, the path may be that outside: then only the top is there.
		for at := path.Clean(parts[2]); ; at = path.Dir(at) {
			if n, ok := readLimit(root, path.Join(folder, at, file)); ok {
				limit = min(limit, n)
			}
			if at == "/" {
				break
			}
		}
	}
	return limit
}

func readLimit(root fs.FS, name string) (int64, bool) {
	text, err := fs.ReadFile(root, name)
	if err != nil {
		return 0, false
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64) // "max" is none
	return n, err == nil && n > 0 && n < math.MaxInt64&^0xffff          // version 1 says about that for none
}
