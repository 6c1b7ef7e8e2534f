// SPDX-License-Identifier: Apache-2.0

package blackbox

import (
	"strings"
	"testing"
)

// lockedOut expects a program of QEMU to be refused for the lock of another process.
func lockedOut(t *testing.T, name string, arguments ...string) {
	t.Helper()
	out, err := attempt(t, name, arguments...)
	if err == nil || !strings.Contains(out, "lock") {
		t.Errorf("%s %v: not refused for a lock: %v %s", name, arguments, err, out)
	}
}

func TestQEMUHonoursOurLocks(t *testing.T) {
	tool(t, "qemu-io")
	d := start(t)
	source, target := d.disks(4<<20, nil)
	run(t, "qemu-io", "-f", "raw", "-c", "read 0 4k", source) // an export alone keeps nobody out, as in QEMU

	d.mirror(args{"copy-mode": "write-blocking"})
	d.wait("BLOCK_JOB_READY", nil)
	lockedOut(t, "qemu-io", "-f", "raw", "-c", "write 0 4k", source)
	lockedOut(t, "qemu-io", "-f", "raw", "-c", "write 0 4k", target)
	lockedOut(t, "qemu-io", "-r", "-f", "raw", "-c", "read 0 4k", target)
	lockedOut(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", source, target)
	run(t, "qemu-io", "-r", "-f", "raw", "-c", "read 0 4k", source)

	d.pivot()
	run(t, "qemu-io", "-r", "-f", "raw", "-c", "read 0 4k", target)
	run(t, "qemu-io", "-f", "raw", "-c", "write 0 4k", source) // nobody's now
}

func TestWeHonourLocksOfQEMU(t *testing.T) {
	tool(t, "qemu-io")
	d := start(t)
	source, target := d.disks(4<<20, nil)

	release := holdWithQEMU(t, "-f", "raw", target)
	d.refused("blockdev-mirror", mirrorArgs(nil), target)
	release()

	release = holdWithQEMU(t, "-f", "raw", source)
	d.refused("blockdev-mirror", mirrorArgs(nil), source)
	release()

	d.mirror(nil)
	d.wait("BLOCK_JOB_READY", nil)
	d.pivot()
}
