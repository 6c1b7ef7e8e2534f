// SPDX-License-Identifier: Apache-2.0

package blackbox

import (
	"bytes"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// An image that is cut short behind the daemon's back reads as zero where it is gone, as in QEMU, and can be written again.
func TestImageShrinksUnderneath(t *testing.T) {
	d := start(t)
	source, target := d.disks(8<<20, nil)
	d.mirror(args{"copy-mode": "write-blocking"})
	d.wait("BLOCK_JOB_READY", nil)
	must(t, os.Truncate(source, 1<<20))
	must(t, os.Truncate(target, 4096))
	g := d.guest("src")
	data := bytes.Repeat([]byte{0xee}, 64<<10)
	must(t, g.ReadAt(t.Context(), data, 4<<20))
	if len(bytes.Trim(data, "\x00")) != 0 {
		t.Error("what is gone does not read as zero")
	}
	must(t, g.WriteAt(t.Context(), bytes.Repeat([]byte{1}, 64<<10), 6<<20, 0))
	must(t, g.Zero(t.Context(), 5<<20, 64<<10, 0))
	must(t, g.Trim(t.Context(), 0, 8<<20, 0))
	must(t, g.Flush(t.Context()))
	_, err := g.Status(t.Context(), 0, 8<<20)
	must(t, err)
	d.pivot()
	d.alive()
}

// Unlinked images stay open; a new node on their names is refused.
func TestImageVanishes(t *testing.T) {
	d := start(t)
	source, target := d.disks(4<<20, nil)
	kept, err := os.Open(target)
	must(t, err)
	defer kept.Close()
	must(t, os.Remove(source))
	must(t, os.Remove(target))
	d.mirror(nil)
	d.wait("BLOCK_JOB_READY", nil)
	g := d.guest("src")
	must(t, g.WriteAt(t.Context(), bytes.Repeat([]byte{7}, 4096), 4096, 0))
	d.refused("blockdev-add", args{"driver": "file", "node-name": "gone", "filename": source}, source, "No such file")
	d.pivot()
	got := make([]byte, 4096)
	_, err = kept.ReadAt(got, 4096)
	must(t, err)
	if !bytes.Equal(got, bytes.Repeat([]byte{7}, 4096)) {
		t.Error("the write did not reach the target")
	}
}

// A device that loses its file gives errors, to the guest and to the job, and no more than that.
func TestDeviceFails(t *testing.T) {
	needRoot(t)
	d := start(t)
	image(t, d.path("back.img"), 8<<20, 1<<20, 0, 4<<20)
	out, err := exec.Command(tool(t, "losetup"), "--find", "--show", "--direct-io=on", d.path("back.img")).CombinedOutput()
	if err != nil {
		t.Skipf("no loop devices here: %s", out)
	}
	device := strings.TrimSpace(string(out))
	t.Cleanup(func() { _ = exec.Command(tool(t, "losetup"), "-d", device).Run() })
	d.do("blockdev-add", args{"driver": "host_device", "node-name": "src", "filename": device, "cache": args{"direct": true}})
	image(t, d.path("dst.img"), 8<<20, 0)
	d.disk("dst", d.path("dst.img"), nil)
	d.export("src")
	g := d.guest("src")
	must(t, os.Truncate(d.path("back.img"), 1<<20))
	if err := g.ReadAt(t.Context(), make([]byte, 64<<10), 4<<20); err == nil {
		t.Skip("the loop device does not notice that its file was cut")
	}
	d.mirror(nil)
	d.wait("BLOCK_JOB_ERROR", args{"operation": "read", "action": "report", "node-name": "src"})
	e := d.wait("BLOCK_JOB_COMPLETED", nil)
	if text, _ := e.Data.Get("error"); text != "Input/output error" {
		t.Errorf("the job ended with %v", text)
	}
	d.alive()
}
