// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// Commands of NBD servers; the export that they serve has any name, or exportName.
const (
	nbdkitCommand  = "nbdkit -f -U {socket} file {file}"
	qemuNBDCommand = "qemu-nbd -f raw -x " + exportName + " -e 0 -t -k {socket} {file}"
)

// defaultPeers finds the peers on PATH, and the newer ones in the system below root if that is not empty. What is not
// installed is left out. Of the newest qemu-storage-daemon those configurations take part that are best somewhere: threads
// for sparse disks and many jobs, io_uring for bulk data, and an I/O thread for deep queues of a guest.
func defaultPeers(root string) (daemons, servers []*contender, err error) {
	add := func(to *[]*contender, format string, args ...any) {
		c, e := parseContender(fmt.Sprintf(format, args...))
		if e != nil {
			err = errors.Join(err, e)
		} else if c.installed() == nil {
			*to = append(*to, c)
		}
	}
	type place struct {
		root, suffix string
		newest       bool
	}
	places := []place{{"", "", true}}
	if root != "" {
		places = []place{{root, "", true}, {"", "-here", false}}
	}
	for _, place := range places {
		option := func(more ...string) string {
			if place.root != "" {
				more = append(more, "root="+place.root)
			}
			if len(more) == 0 {
				return ""
			}
			return "[" + strings.Join(more, ",") + "]"
		}
		add(&daemons, "qsd%s%s=qemu-storage-daemon", place.suffix, option())
		if place.newest {
			add(&daemons, "qsd-uring%s=qemu-storage-daemon", option("aio=io_uring"))
			add(&daemons, "qsd-iothread%s=qemu-storage-daemon", option("iothread=on", "scenarios=S4+S6"))
		}
		add(&servers, "qemu-nbd%s%s=%s", place.suffix, option(), qemuNBDCommand)
		add(&servers, "nbdkit%s%s=%s", place.suffix, option(), nbdkitCommand)
	}
	return daemons, servers, err
}

var versionPattern = regexp.MustCompile(`\d+\.\d+(\.\d+)?`)

// version asks a program what it is; "" if it does not say.
func (c *contender) version(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	argv := c.argv(nil)
	for i, word := range argv { // the program itself, without its arguments
		if base := filepath.Base(word); strings.HasPrefix(base, "qemu-") || strings.HasPrefix(base, "nbdkit") || strings.HasPrefix(base, "blkmirrord") {
			argv = argv[:i+1]
			break
		}
	}
	out, err := exec.CommandContext(ctx, argv[0], append(argv[1:], "--version")...).Output()
	if err != nil {
		return ""
	}
	line, _, _ := strings.Cut(string(out), "\n")
	if v := versionPattern.FindString(line); v != "" {
		return v
	}
	return ""
}
