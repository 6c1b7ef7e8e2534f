// SPDX-License-Identifier: Apache-2.0

package hosts

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// TestTargetDiskFull: the target's disk has no room for a while. The job stops, and goes on when it is resumed.
func TestTargetDiskFull(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		mode, policy string
		restart      bool // the target's daemon, while there is no room
	}{
		{"background", "enospc", false},
		{"write-blocking", "stop", true},
	} {
		t.Run(c.mode, func(t *testing.T) {
			interop(t)
			t.Parallel()
			folder := smallDisk(t, 2<<20)
			p := newPair(t, setup{folder: folder})
			p.mirror(args{"copy-mode": c.mode, "on-target-error": c.policy})
			e := p.source.wait("BLOCK_JOB_ERROR", args{"device": "m", "operation": "write", "action": "stop", "node-name": "dst"})
			if !has(e, args{"errno": "No space left on device"}) {
				errno, _ := e.Data.Get("errno")
				t.Errorf("the event has errno %v", errno)
			}
			eventually(t, "the job is paused", patience, func() bool { return p.job().Status == "paused" })
			if s := p.job().IOStatus; s != "nospace" {
				t.Errorf("io-status is %s", s)
			}
			p.guest.more(10, quick)
			if c.restart {
				p.restart()
			}
			if out, err := exec.Command("mount", "-o", "remount,size=64m", folder).CombinedOutput(); err != nil {
				t.Fatalf("cannot make room: %v %s", err, out)
			}
			p.source.do("job-resume", args{"id": "m"})
			p.finish(pivot)
		})
	}
}

// smallDisk mounts a file system of n bytes.
func smallDisk(t *testing.T, n int) (folder string) {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "hs-")
	must(t, err)
	folder = filepath.Join(dir, "small")
	must(t, os.Mkdir(folder, 0o700))
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", fmt.Sprintf("size=%d", n), "small", folder).CombinedOutput(); err != nil {
		t.Skipf("cannot mount a file system: %v %s", err, out)
	}
	t.Cleanup(func() { _ = exec.Command("umount", "-l", folder).Run() })
	return folder
}
