// SPDX-License-Identifier: Apache-2.0

package images

import (
	"testing"
)

// busy is a daemon whose guest writes to a disk all the time.
type busy struct {
	*daemon
	*guest
}

const busySize = 24*mib + 3*sector

// busyGuest starts a daemon, has it open the images that make makes, and starts a guest on the node disk.
func busyGuest(t *testing.T, first func(d *daemon, g *guest)) busy {
	t.Helper()
	dice(t)
	b := busy{start(t, folder(t)), newGuest(t, busySize)}
	first(b.daemon, b.guest)
	b.export("disk")
	b.begin(b.daemon, "disk")
	b.until(200)
	return b
}

// over ends the guest; the disk holds what it should, and so does the image when the daemon has ended.
func (b busy) over(image, format string, layers ...string) {
	t := b.guest.t
	t.Helper()
	b.until(200)
	b.end()
	disk := b.read("disk")
	b.take("the disk", disk, true)
	b.daemon.stop()
	for _, l := range append(layers, image) {
		if format == "qcow2" || l != image {
			inOrder(t, b.path(l), false)
		}
	}
	same(t, "the image", convert(t, format, b.path(image)), disk)
}

// TestMirror: the disk of a guest moves while it writes.
func TestMirror(t *testing.T) {
	for _, mode := range []string{"background", "write-blocking"} {
		for name, c := range map[string]struct {
			source, target args
			large          bool
		}{
			"qcow2 to qcow2":       {args{"cluster-size": 4096}, args{}, false},
			"qcow2 to large":       {args{}, args{"cluster-size": 2 * mib}, true},
			"qcow2 to subclusters": {args{"cluster-size": 512}, args{"extended-l2": true, "lazy-refcounts": true}, false},
			"raw to qcow2":         {nil, args{"cluster-size": 16 * kib}, false},
			"qcow2 to data file":   {args{"extended-l2": true}, args{"data-file": true}, true},
			"qcow2 to old":         {args{}, args{"version": "v2", "cluster-size": 1024}, true},
		} {
			t.Run(name+" "+mode, func(t *testing.T) {
				if c.large && !interop() {
					t.Skip("one of the longer ones: `make interop` runs it (BLKMIRROR_INTEROP is not set)")
				}
				b := busyGuest(t, func(d *daemon, _ *guest) {
					if c.source == nil {
						run(t, "qemu-img", "create", "-f", "raw", d.path("source"), "25167360")
						d.do("blockdev-add", args{"driver": "raw", "node-name": "disk", "discard": "unmap",
							"file": args{"driver": "file", "filename": d.path("source")}})
					} else {
						c.source["size"] = busySize
						d.create("source", c.source)
						d.do("blockdev-add", imageNode("disk", d.path("source"), nil))
					}
					c.target["size"] = busySize
					d.create("target", c.target)
					d.qcow2("target", nil)
				})
				b.job("blockdev-mirror", args{"job-id": "m", "device": "disk", "target": "target", "sync": "full", "copy-mode": mode})
				b.over("target", "qcow2")
			})
		}
	}
}

// TestMirrorTop: only the top layer moves; the target is given the rest of the chain when it has all of that.
func TestMirrorTop(t *testing.T) {
	for _, mode := range []string{"background", "write-blocking"} {
		t.Run(mode, func(t *testing.T) {
			b := busyGuest(t, func(d *daemon, g *guest) {
				d.base("base", g, nil)
				d.create("source", args{"size": busySize, "backing-file": d.path("base"), "backing-fmt": "qcow2", "cluster-size": 2048})
				d.create("target", args{"size": busySize, "backing-file": d.path("base"), "backing-fmt": "qcow2"})
				d.qcow2("base", args{"read-only": true})
				d.do("blockdev-add", imageNode("again", d.path("base"), args{"read-only": true}))
				d.do("blockdev-add", imageNode("disk", d.path("source"), args{"backing": "base"}))
				d.qcow2("target", args{"backing": nil})
			})
			b.do("blockdev-mirror", args{"job-id": "m", "device": "disk", "target": "target", "sync": "top", "copy-mode": mode})
			b.wait("BLOCK_JOB_READY", args{"device": "m"})
			b.until(200)
			b.do("blockdev-snapshot", args{"node": "again", "overlay": "target"})
			b.until(200)
			b.do("job-complete", args{"id": "m"})
			b.finish("m")
			b.over("target", "qcow2", "base")
		})
	}
}

// base makes an image and has a guest fill some of it.
func (d *daemon) base(name string, g *guest, options args) {
	d.t.Helper()
	a := args{"size": busySize}
	for key, value := range options {
		a[key] = value
	}
	d.create(name, a)
	d.qcow2(name, args{"backing": nil})
	d.export(name)
	g.begin(d, name)
	g.until(300)
	g.end()
	g.take("the base", d.read(name), true)
	d.close(name)
}

// snapshot puts an overlay on the disk.
func (b busy) snapshot(n string, options args) {
	t := b.guest.t
	t.Helper()
	a := args{"size": busySize, "backing-file": b.path("disk0"), "backing-fmt": "qcow2"}
	for key, value := range options {
		a[key] = value
	}
	b.create("disk"+n, a)
	b.qcow2("disk"+n, args{"backing": nil})
}

// chain is a disk of three layers, each of which was written to; disk is the lowest.
func chain(t *testing.T) busy {
	t.Helper()
	b := busyGuest(t, func(d *daemon, _ *guest) {
		d.create("disk0", args{"size": busySize})
		d.do("blockdev-add", imageNode("disk", d.path("disk0"), nil))
	})
	b.snapshot("1", args{"cluster-size": 4096})
	b.do("blockdev-snapshot", args{"node": "disk", "overlay": "disk1"})
	b.until(300)
	b.snapshot("2", args{"backing-file": b.path("disk1"), "extended-l2": true})
	b.do("blockdev-snapshot", args{"node": "disk1", "overlay": "disk2"})
	b.until(300)
	return b
}

func TestSnapshot(t *testing.T) {
	b := chain(t)
	b.do("blockdev-snapshot-sync", args{"node-name": "disk2", "snapshot-node-name": "disk3", "snapshot-file": b.path("disk3")})
	b.over("disk3", "qcow2", "disk2", "disk1", "disk0")
}

func TestCommitActive(t *testing.T) {
	b := chain(t)
	b.job("block-commit", args{"job-id": "c", "device": "disk2"})
	b.over("disk0", "qcow2", "disk1", "disk2")
}

func TestCommitActiveInParts(t *testing.T) {
	b := chain(t)
	b.job("block-commit", args{"job-id": "c", "device": "disk2", "base-node": "disk1"})
	b.over("disk1", "qcow2", "disk0")
}

func TestCommitIntermediate(t *testing.T) {
	b := chain(t)
	b.job("block-commit", args{"job-id": "c", "device": "disk2", "top-node": "disk1"})
	b.over("disk2", "qcow2", "disk0")
}

func TestStream(t *testing.T) {
	for name, a := range map[string]args{"all": {}, "one": {"base-node": "disk"}} {
		t.Run(name, func(t *testing.T) {
			b := chain(t)
			all := args{"job-id": "s", "device": "disk2"}
			for key, value := range a {
				all[key] = value
			}
			b.job("block-stream", all)
			b.over("disk2", "qcow2", "disk0")
		})
	}
}

func TestStreamIntermediate(t *testing.T) {
	b := chain(t)
	b.job("block-stream", args{"job-id": "s", "device": "disk1"})
	b.over("disk2", "qcow2", "disk1", "disk0")
}
