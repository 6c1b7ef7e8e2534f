// SPDX-License-Identifier: Apache-2.0

package blackbox

import (
	"os/exec"
	"testing"

	"github.com/blkmirror/blkmirror/block/nbd/nbdguest"
)

// Nobody writes to the source of a running mirror but through the mirror.
func TestNoWayAroundFilter(t *testing.T) {
	for _, mode := range []string{"background", "write-blocking"} {
		t.Run(mode, func(t *testing.T) {
			d := start(t)
			source, target := d.disks(4<<20, nil)
			d.mirror(args{"copy-mode": mode, "filter-node-name": "mirror-m"})
			d.wait("BLOCK_JOB_READY", nil)

			// The child below the source, and the target.
			d.refused("block-export-add", args{"type": "nbd", "id": "child", "node-name": "src-file", "writable": true},
				"src-file", "export 'child'", "node 'src'")
			d.refused("block-export-add", args{"type": "nbd", "id": "copy", "node-name": "dst", "writable": true},
				"dst", "export 'copy'", "block job 'm'")
			// Another node on the same path: it may be opened, and only its lock tells the two apart.
			d.do("blockdev-add", args{"driver": "file", "node-name": "again", "filename": source})
			d.refused("block-export-add", args{"type": "nbd", "id": "twin", "node-name": "again", "writable": true}, source)
			d.refused("blockdev-mirror", mirrorArgs(args{"job-id": "n", "device": "again", "target": "src"}), "src")
			// Another process.
			if _, err := exec.LookPath("qemu-io"); err == nil {
				lockedOut(t, "qemu-io", "-f", "raw", "-c", "write -P 9 0 4k", source)
			}
			// A node above the source by its name, and another export of the source: they stand above the mirror.
			d.do("blockdev-add", args{"driver": "raw", "node-name": "above", "file": "src", "offset": 1 << 20, "size": 1 << 20})
			d.do("block-export-add", args{"type": "nbd", "id": "above", "node-name": "above", "writable": true})
			d.do("block-export-add", args{"type": "nbd", "id": "late", "node-name": "src", "writable": true, "name": "late"})
			data := make([]byte, 70000)
			for i := range data {
				data[i] = byte(i%251) + 1
			}
			for at, name := range map[uint64]string{100: "src", 4097: "above", 3 << 20: "late"} {
				must(t, d.guest(name).WriteAt(t.Context(), data, at, nbdguest.CommandFlags(0)))
			}
			d.pivot()
			same(t, source, target)
		})
	}
}
