// SPDX-License-Identifier: Apache-2.0

package blackbox

import (
	"fmt"
	"os"
	"slices"
	"strings"
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

// Two images are compared, of whatever format; an export that may write to one of them is in the way.
func TestBlockdevVerify(t *testing.T) {
	for _, format := range []string{"raw", "qcow2"} {
		t.Run(format, func(t *testing.T) {
			tool(t, "qemu-img")
			d := start(t)
			const size = 16 << 20
			image(t, d.path("a"), size, 1<<20, 0, size/2)
			run(t, "qemu-img", "convert", "-f", "raw", "-O", format, d.path("a"), d.path("b"))
			run(t, "cp", d.path("a"), d.path("c"))
			poke(t, d.path("c"), size/2+700, "rot")
			poke(t, d.path("c"), size-1, "x")
			d.disk("a", d.path("a"), args{"read-only": true})
			d.disk("c", d.path("c"), nil)
			d.do("blockdev-add", args{"driver": format, "node-name": "b", "file": args{"driver": "file", "filename": d.path("b")}})

			d.do("blockdev-verify", args{"job-id": "v", "device": "a", "target": "b", "digest": "blake3"})
			verified := d.wait("BLOCKDEV_VERIFIED", args{"device": "v", "verified-bytes": size, "differing-bytes": 0})
			source, _ := verified.Data.Get("source-digest")
			target, _ := verified.Data.Get("target-digest")
			if len(fmt.Sprint(source)) != 64 || source != target {
				t.Errorf("digests of equal disks: %v, %v", source, target)
			}
			equal := d.wait("BLOCK_JOB_COMPLETED", args{"device": "v", "type": "verify"})
			if text, failed := equal.Data.Get("error"); failed {
				t.Errorf("equal disks: %v", text)
			}
			d.wait("JOB_STATUS_CHANGE", args{"status": "null"})

			d.do("blockdev-verify", args{"job-id": "v", "device": "b", "target": "c", "auto-dismiss": false})
			first := size/2 + 512
			d.wait("BLOCKDEV_VERIFIED", args{"device": "v", "verified-bytes": size - 1024, "differing-bytes": 1024, "first-difference": first})
			e := d.wait("BLOCK_JOB_COMPLETED", args{"device": "v"})
			text, _ := e.Data.Get("error")
			for _, words := range []string{"'b'", "'c'", fmt.Sprint("offset ", first), "1024 bytes"} {
				if !strings.Contains(fmt.Sprint(text), words) {
					t.Errorf("error %q does not say %q", text, words)
				}
			}
			d.wait("JOB_STATUS_CHANGE", args{"status": "concluded"})
			d.do("job-dismiss", args{"id": "v"})

			d.export("c")
			d.refused("blockdev-verify", args{"job-id": "v", "device": "a", "target": "c"}, "'c'", "export-c")
		})
	}
}

// A mirror tells the digest of its disks as they are when it completes, which is what blockdev-verify finds afterwards, and compares
// them again when it is asked to.
func TestMirrorDigest(t *testing.T) {
	d := start(t)
	const size = 40 << 20
	source, target := d.disks(size, nil)
	d.refused("blockdev-mirror", mirrorArgs(args{"x-verify-digest": "blake3"}), "x-verify-digest", "needs 'x-verify'")
	d.mirror(args{"x-verify": true, "x-verify-digest": "blake3", "auto-dismiss": false})
	d.wait("MIRROR_VERIFIED", args{"device": "m", "differing-bytes": 0})
	d.refused("blockdev-verify", args{"job-id": "v", "device": "src", "target": "dst"}, "'src'", "job 'm'", "x-blockdev-mirror-verify")
	d.refused("blockdev-verify", args{"job-id": "v", "device": "dst", "target": "dst"}, "'dst'", "job 'm'")
	poke(t, target, size/2+4096, "rot")
	d.do("x-blockdev-mirror-verify", args{"id": "m"})
	d.wait("MIRROR_VERIFIED", args{"device": "m", "differing-bytes": 512})
	d.refused("x-blockdev-mirror-verify", args{"id": "n"}, "n")
	d.do("job-complete", args{"id": "m"})
	e := d.wait("MIRROR_DIGEST", args{"device": "m"})
	d.wait("JOB_STATUS_CHANGE", args{"status": "concluded"})
	sum, _ := e.Data.Get("digest")
	var jobs []struct{ Status, Digest, Source, Target string }
	must(t, d.query("query-jobs", nil, &jobs))
	if len(jobs) != 1 || jobs[0].Status != "concluded" || jobs[0].Digest != sum || jobs[0].Source != "src" || jobs[0].Target != "dst" {
		t.Errorf("query-jobs: %+v; told: %v", jobs, sum)
	}
	same(t, source, target)
	d.do("block-export-del", args{"id": "export-src"})
	d.wait("BLOCK_EXPORT_DELETED", nil)
	d.do("blockdev-verify", args{"job-id": "v", "device": "src", "target": "dst", "digest": "blake3"})
	d.wait("BLOCKDEV_VERIFIED", args{"device": "v", "source-digest": sum, "target-digest": sum})
}
