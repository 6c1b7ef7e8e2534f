// SPDX-License-Identifier: Apache-2.0

package blackbox

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// smallDisk mounts a file system of n bytes.
func smallDisk(t *testing.T, n int) (dir string) {
	t.Helper()
	needRoot(t)
	dir = filepath.Join(folder(t), "small")
	must(t, os.Mkdir(dir, 0o700))
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", fmt.Sprintf("size=%d", n), "small", dir).CombinedOutput(); err != nil {
		t.Skipf("cannot mount a file system: %v %s", err, out)
	}
	t.Cleanup(func() { _ = exec.Command("umount", "-l", dir).Run() })
	return dir
}

// fullDisk opens a source with 8 MiB of data, and a target on a file system of 4 MiB.
func fullDisk(t *testing.T) (d *daemon, dir string) {
	dir = smallDisk(t, 4<<20)
	d = start(t)
	image(t, d.path("src.img"), 64<<20, 8<<20, 1<<20)
	image(t, filepath.Join(dir, "dst.img"), 64<<20, 0)
	d.disk("src", d.path("src.img"), nil)
	d.disk("dst", filepath.Join(dir, "dst.img"), nil)
	d.export("src")
	return d, dir
}

func TestFullDiskFailsTheJob(t *testing.T) {
	for _, mode := range []string{"background", "write-blocking"} {
		t.Run(mode, func(t *testing.T) {
			d, _ := fullDisk(t)
			d.mirror(args{"copy-mode": mode})
			e := d.wait("BLOCK_JOB_ERROR", args{"device": "m", "operation": "write", "action": "report"})
			if node, _ := e.Data.Get("node-name"); node != "dst" {
				t.Errorf("the event names node %v", node)
			}
			e = d.wait("BLOCK_JOB_COMPLETED", nil)
			if text, _ := e.Data.Get("error"); text != "No space left on device" {
				t.Errorf("the job ended with %v", text)
			}
			g := d.guest("src")
			must(t, g.WriteAt(t.Context(), make([]byte, 4096), 0, 0)) // the guest's disk has room
			d.do("blockdev-del", args{"node-name": "dst"})
		})
	}
}

func TestFullDiskStopsTheJobUntilThereIsRoom(t *testing.T) {
	d, dir := fullDisk(t)
	d.mirror(args{"on-target-error": "enospc"})
	d.wait("BLOCK_JOB_ERROR", args{"device": "m", "action": "stop"})
	d.wait("JOB_STATUS_CHANGE", args{"status": "paused"})
	if j := d.job(); j.IOStatus != "nospace" {
		t.Errorf("io-status is %s", j.IOStatus)
	}
	must(t, exec.Command("mount", "-o", "remount,size=64m", dir).Run())
	d.do("job-resume", args{"id": "m"})
	d.wait("BLOCK_JOB_READY", nil)
	d.pivot()
	same(t, d.path("src.img"), filepath.Join(dir, "dst.img"))
}

func TestFullDiskUnderGuest(t *testing.T) {
	dir := smallDisk(t, 2<<20)
	d := start(t)
	image(t, filepath.Join(dir, "src.img"), 16<<20, 0)
	d.disk("src", filepath.Join(dir, "src.img"), nil)
	d.export("src")
	g := d.guest("src")
	data := []byte(strings.Repeat("data", 1<<20))
	if err := g.WriteAt(t.Context(), data, 0, 0); err == nil || !strings.Contains(err.Error(), "ENOSPC") {
		t.Errorf("the guest's error is %v", err)
	}
	must(t, g.WriteAt(t.Context(), data[:4096], 0, 0)) // in place
	d.alive()
}
