// SPDX-License-Identifier: Apache-2.0

package blackbox

import (
	"os"
	"slices"
	"testing"

	"github.com/blkmirror/blkmirror/qmp/client"
)

// poke writes into a file behind the daemon's back.
func poke(t testing.TB, path string, off int64, text string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	must(t, err)
	_, err = f.WriteAt([]byte(text), off)
	must(t, err)
	must(t, f.Close())
}

// Somebody writes into the target's file, into data and into a hole, after it was copied: the mirror tells and mends it.
func TestMirrorVerifies(t *testing.T) {
	for _, mode := range []string{"background", "write-blocking"} {
		t.Run(mode, func(t *testing.T) {
			d := start(t)
			const size = 16 << 20
			source, target := d.disks(size, args{"discard": "unmap"})
			// So slow that the first data takes the comparison two seconds.
			d.mirror(args{"copy-mode": mode, "x-verify": true, "speed": 512 << 10})
			d.wait("BLOCK_JOB_READY", nil)
			poke(t, target, size/2+70000, "rot")
			poke(t, target, size-5000, "rot")
			d.do("block-job-set-speed", args{"device": "m", "speed": 0})
			d.wait("MIRROR_VERIFIED", args{"device": "m", "differing-bytes": 1024})
			for _, at := range []int{size/2 + 70000, size - 5000} {
				told := func(e client.Event) bool {
					return e.Name == "MIRROR_DIFFERENCE" && has(e, args{"device": "m", "offset": at &^ 511, "length": 512, "differing-bytes": 512})
				}
				if !slices.ContainsFunc(d.events, told) {
					t.Errorf("nobody told that the target differed at %d; came: %v", at, show(d.events))
				}
			}
			var jobs []struct {
				Verified   int64 `json:"verified-bytes"`
				Unverified int64 `json:"unverified-bytes"`
				Differing  int64 `json:"differing-bytes"`
			}
			must(t, d.query("query-jobs", nil, &jobs))
			if len(jobs) != 1 || jobs[0].Verified != size || jobs[0].Unverified != 0 || jobs[0].Differing != 1024 {
				t.Errorf("query-jobs: %+v", jobs)
			}
			d.pivot()
			same(t, source, target)
		})
	}
	d := start(t)
	d.disks(1<<20, nil)
	d.refused("blockdev-mirror", mirrorArgs(args{"sync": "none", "x-verify": true}), "x-verify", "full")
}
