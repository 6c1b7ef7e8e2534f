// SPDX-License-Identifier: Apache-2.0

package blackbox

import (
	"net"
	"os"
	"os/exec"
	"testing"
	"time"
)

// remote serves an image with qemu-nbd until the returned function kills it, as a power switch would.
func remote(t *testing.T, socket, image string) (kill func()) {
	t.Helper()
	program, err := exec.LookPath("qemu-nbd")
	if err != nil {
		t.Skip("qemu-nbd is not installed")
	}
	_ = os.Remove(socket)
	cmd := exec.Command(program, "-t", "-f", "raw", "-e", "8", "-x", "disk", "-k", socket, image)
	must(t, cmd.Start())
	kill = func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
	t.Cleanup(kill)
	eventually(t, "qemu-nbd listens", func() bool {
		c, err := net.Dial("unix", socket)
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	})
	return kill
}

// TestTargetHostDiesAndComesBack: guests' writes are not held up while a remote target is gone, and the copy is right when it
// is back.
func TestTargetHostDiesAndComesBack(t *testing.T) {
	for _, mode := range []string{"write-blocking", "background"} {
		t.Run(mode, func(t *testing.T) {
			d := start(t)
			source, target, socket := d.path("src.img"), d.path("dst.img"), d.path("remote")
			const size = 64 << 20
			image(t, source, size, 1<<20, 0, size/2)
			image(t, target, size, 0)
			kill := remote(t, socket, target)
			d.disk("src", source, nil)
			d.do("blockdev-add", args{"driver": "nbd", "node-name": "dst", "export": "disk", "reconnect-delay": 60,
				"server": args{"type": "unix", "path": socket}})
			d.export("src")
			g := d.guest("src")
			d.mirror(args{"copy-mode": mode, "on-target-error": "stop"})
			d.wait("BLOCK_JOB_READY", args{"device": "m"})
			data := make([]byte, 64<<10)
			var slowest time.Duration
			write := func(from, to int) {
				for i := from; i < to; i++ {
					for j := range data {
						data[j] = byte(i + j/512)
					}
					began := time.Now()
					must(t, g.WriteAt(t.Context(), data, uint64(i*7919%(size/len(data))*len(data)), 0))
					slowest = max(slowest, time.Since(began))
				}
			}
			write(0, 50)
			kill()
			write(50, 150)
			must(t, g.Flush(t.Context()))
			if slowest > patience/4 {
				t.Errorf("a guest's write took %v while the target was gone", slowest)
			}
			remote(t, socket, target)
			write(150, 200)
			d.do("block-job-cancel", args{"device": "m"})
			e := d.wait("BLOCK_JOB_COMPLETED", args{"device": "m"})
			if text, failed := e.Data.Get("error"); failed {
				t.Fatalf("the mirror failed: %v", text)
			}
			d.wait("JOB_STATUS_CHANGE", args{"status": "null"})
			same(t, source, target)
		})
	}
}
