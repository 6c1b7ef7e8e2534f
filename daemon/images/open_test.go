// SPDX-License-Identifier: Apache-2.0

package images

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestCommandLine(t *testing.T) {
	dir := folder(t)
	run(t, "qemu-img", "create", "-q", "-f", "qcow2", dir+"/base", "8M")
	run(t, "qemu-io", "-f", "qcow2", "-c", "write -P 7 1M 64k", dir+"/base")
	run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-b", "base", "-F", "qcow2", dir+"/image")
	d := start(t, dir, "--blockdev", "qcow2,node-name=image,file.driver=file,file.filename=image,discard=unmap,l2-cache-size=65536",
		"--export", "nbd,id=e,node-name=image,writable=on")
	disk := d.read("image")
	if disk[1<<20] != 7 || disk[0] != 0 {
		t.Errorf("reads %d, %d", disk[1<<20], disk[0])
	}
	g := d.connect("image")
	must(t, g.WriteAt(t.Context(), []byte("over"), 1<<20, 0))
	copy(disk[1<<20:], "over")
	d.stop()
	inOrder(t, dir+"/image", false)
	holds(t, dir+"/image", disk)
}

// TestRemoteBase: the backing file is on another server.
func TestRemoteBase(t *testing.T) {
	dir := folder(t)
	far := start(t, dir)
	far.create("base", args{"size": 4 * mib})
	far.qcow2("base", nil)
	far.export("base")
	g := far.connect("base")
	must(t, g.WriteAt(t.Context(), []byte("far away"), 12345, 0))
	run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-b", far.uri("base"), "-F", "raw", dir+"/image", "4M")
	d := start(t, dir)
	d.qcow2("image", nil)
	d.export("image")
	disk := d.read("image")
	if string(disk[12345:12353]) != "far away" {
		t.Errorf("reads %q", disk[12345:12353])
	}
	near := d.connect("image")
	must(t, near.WriteAt(t.Context(), []byte("near"), 12349, 0))
	copy(disk[12349:], "near")
	same(t, "written", d.read("image"), disk)
	d.stop()
	inOrder(t, dir+"/image", false)
	holds(t, dir+"/image", disk)
}

// TestLocks: an image has one writer, and who reads keeps writers out.
func TestLocks(t *testing.T) {
	dir := folder(t)
	d, other := start(t, dir), start(t, dir)
	d.create("image", args{"size": mib})
	d.qcow2("image", nil)
	d.export("image")
	other.refused("blockdev-add", imageNode("image", d.path("image"), nil), "lock")
	if out, err := attempt(t, "qemu-io", "-f", "qcow2", "-c", "write 0 4k", d.path("image")); err == nil || !strings.Contains(out, "lock") {
		t.Errorf("qemu-io writes to the image: %v %s", err, out)
	}
	d.refused("blockdev-add", imageNode("second", d.path("image"), nil), "image")
	d.close("image")
	other.qcow2("image", nil) // locked before anybody uses the node, because its tables are in memory
	d.refused("blockdev-add", imageNode("image", d.path("image"), nil), "lock")
}

// TestChains: a chain may be long but not endless.
func TestChains(t *testing.T) {
	dir := folder(t)
	d := start(t, dir)
	name := func(i int) string { return fmt.Sprintf("layer%03d", i) }
	const deep = 200
	for i := range deep + 1 {
		a := []string{"create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", "-u"}
		if i > 0 {
			a = append(a, "-b", name(i-1), "-F", "qcow2")
		}
		if i < 3 {
			run(t, "qemu-img", append(a, d.path(name(i)), "1M")...)
			continue
		}
		o := args{"size": mib, "cluster-size": 4096, "backing-file": name(i - 1), "backing-fmt": "qcow2"}
		d.create(name(i), o)
	}
	for i := range 3 { // and something in the lowest ones
		run(t, "qemu-io", "-f", "qcow2", "-c", fmt.Sprintf("write -P %d %dk 4k", i+1, i*64), d.path(name(i)))
	}
	d.qcow2(name(deep-1), nil)
	d.export(name(deep - 1))
	disk := d.read(name(deep - 1))
	for i := range 3 {
		if disk[i<<16] != byte(i+1) {
			t.Errorf("layer %d reads %d", i, disk[i<<16])
		}
	}
	g := d.connect(name(deep - 1))
	must(t, g.WriteAt(t.Context(), []byte("top"), 64<<10+10, 0))
	copy(disk[64<<10+10:], "top")
	same(t, "written", d.read(name(deep-1)), disk)
	d.close(name(deep - 1))
	d.refused("blockdev-add", imageNode("x", d.path(name(deep)), nil), "more than 200")
	d.job2(name(deep-1), disk)

	run(t, "qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", "b", "-F", "qcow2", d.path("a"), "1M")
	run(t, "qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", "a", "-F", "qcow2", d.path("b"), "1M")
	must(t, os.Symlink(d.path("a"), d.path("link")))
	for _, name := range []string{"a", "b", "link"} {
		d.refused("blockdev-add", imageNode("x", d.path(name), nil), "loop")
	}
}

// job2 streams a whole chain into its top.
func (d *daemon) job2(name string, disk []byte) {
	d.t.Helper()
	d.qcow2(name, nil)
	d.job("block-stream", args{"job-id": "s", "device": name})
	d.do("blockdev-del", args{"node-name": name})
	inOrder(d.t, d.path(name), false)
	holds(d.t, d.path(name), disk)
	if out := run(d.t, "qemu-img", "info", d.path(name)); strings.Contains(out, "backing file") {
		d.t.Errorf("still has a backing file: %s", out)
	}
}

// TestHuge: images of any size are made and used, or refused, quickly and with little memory.
func TestHuge(t *testing.T) {
	d := start(t, folder(t))
	for _, c := range []struct {
		size    uint64
		cluster int
		ext     bool
		refused bool
	}{
		{1 << 40, 65536, false, false},
		{64 << 40, 2 * mib, false, false},
		{1 << 31, 512, false, false},
		{1 << 50, 2 * mib, false, false},
		{1 << 50, 65536, false, false},
		{1 << 52, 65536, false, true},
		{1 << 61, 2 * mib, false, false},
		{1 << 62, 2 * mib, false, true},
		{1<<63 - 512, 2 * mib, false, true},
		{1 << 63, 65536, false, true},
		{1<<64 - 512, 65536, true, true},
	} {
		if !c.refused {
			d.create("huge", args{"size": c.size, "cluster-size": c.cluster, "extended-l2": c.ext})
			d.qcow2("huge", nil)
			d.export("huge")
			g := d.connect("huge")
			must(t, g.WriteAt(t.Context(), []byte("the end"), c.size-512, 0))
			must(t, g.WriteAt(t.Context(), []byte("the middle"), c.size/2, 0))
			var b [7]byte
			must(t, g.ReadAt(t.Context(), b[:], c.size-512))
			if string(b[:]) != "the end" {
				t.Errorf("size %d: reads %q", c.size, b)
			}
			must(t, g.Trim(t.Context(), 0, 1<<30, 0))
			g.Close()
			d.close("huge")
			inOrder(t, d.path("huge"), false)
		} else {
			must(t, os.WriteFile(d.path("huge"), nil, 0o600))
			d.do("blockdev-add", args{"driver": "file", "node-name": "new", "filename": d.path("huge")})
			err := d.try("blockdev-create", args{"job-id": "make", "options": args{"driver": "qcow2", "file": "new", "size": c.size,
				"cluster-size": c.cluster, "extended-l2": c.ext}})
			if err == nil {
				d.wait("JOB_STATUS_CHANGE", args{"id": "make", "status": "concluded"})
				var jobs []struct{ Error string }
				must(t, d.query("query-jobs", nil, &jobs))
				if len(jobs) != 1 || jobs[0].Error == "" {
					t.Errorf("size %d: %v", c.size, jobs)
				}
				d.do("job-dismiss", args{"id": "make"})
			}
			d.do("blockdev-del", args{"node-name": "new"})
		}
	}
}

// TestTruncated: an image that ends early is refused or reads with errors; it is not written to, and the daemon goes on.
func TestTruncated(t *testing.T) {
	d := start(t, folder(t))
	d.create("image", args{"size": mib, "cluster-size": 512})
	d.qcow2("image", nil)
	d.export("image")
	g := d.connect("image")
	for at := uint64(0); at < mib; at += 3000 {
		must(t, g.WriteAt(t.Context(), []byte("data"), at, 0))
	}
	g.Close()
	d.close("image")
	whole, err := os.ReadFile(d.path("image"))
	must(t, err)
	ends := []int{0, 1, 3, 4, 71, 72, 103, 104, 111, 511, 512, 513, 1024, 1536, 2048, 2049, 4096, len(whole) / 2, len(whole) - 512, len(whole) - 1}
	for _, end := range ends {
		must(t, os.WriteFile(d.path("short"), slices.Clone(whole[:end]), 0o600))
		if d.try("blockdev-add", imageNode("short", d.path("short"), nil)) != nil {
			continue
		}
		d.export("short")
		g := d.connect("short")
		_ = g.ReadAt(t.Context(), make([]byte, g.Size()), 0)
		_ = g.WriteAt(t.Context(), make([]byte, 3000), 100, 0)
		_ = g.Trim(t.Context(), 0, 60000, 0)
		_ = g.Flush(t.Context())
		g.Close()
		d.close("short")
	}
}

// TestResize: a disk that is resized between two guests keeps what the smaller of both sizes has, and the next guest sees its length.
// An export keeps it from being resized, as NBD has no way to tell clients.
func TestResize(t *testing.T) {
	for _, cluster := range []int{512, 65536, 2 * mib} {
		t.Run(fmt.Sprint(cluster), func(t *testing.T) {
			b := busyGuest(t, func(d *daemon, _ *guest) {
				d.create("image", args{"size": busySize, "cluster-size": cluster})
				d.do("blockdev-add", imageNode("disk", d.path("image"), nil))
			})
			for _, size := range []int64{busySize + 512, 40 * mib, 300 * mib, busySize + 4096, 50 * mib, busySize} {
				b.until(60)
				b.end()
				resize := args{"node-name": "disk", "size": size}
				if err := b.try("block_resize", resize); err == nil || !strings.Contains(err.Error(), "Permission conflict") {
					t.Errorf("resized while it is exported: %v", err)
				}
				b.do("block-export-del", args{"id": "export-disk", "mode": "hard"})
				b.wait("BLOCK_EXPORT_DELETED", nil)
				b.do("block_resize", resize)
				b.export("disk")
				c := b.connect("disk")
				if int64(c.Size()) != size {
					t.Errorf("a disk of %d bytes is exported with %d", size, c.Size())
				}
				c.Close()
				b.begin(b.daemon, "disk")
			}
			b.over("image", "qcow2")
		})
	}
}

// small mounts a file system of n bytes.
func small(t *testing.T, n int) (dir string, resize func(n int)) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to mount file systems")
	}
	dir = folder(t)
	mount := func(options string) {
		if out, err := exec.Command("mount", "-t", "tmpfs", "-o", options, "small", dir).CombinedOutput(); err != nil {
			t.Skipf("cannot mount a file system: %v %s", err, out)
		}
	}
	mount(fmt.Sprint("size=", n))
	t.Cleanup(func() { _ = exec.Command("umount", "-l", dir).Run() })
	return dir, func(n int) { mount(fmt.Sprint("remount,size=", n)) }
}

// TestFullDisk: writes fail while there is no room, and nothing else goes wrong; with room again they go on.
func TestFullDisk(t *testing.T) {
	for _, options := range []args{{}, {"cluster-size": 512}, {"extended-l2": true}, {"cluster-size": 4096, "lazy-refcounts": true}} {
		t.Run(fmt.Sprint(options), func(t *testing.T) {
			random := dice(t)
			dir, resize := small(t, 2*mib)
			d := start(t, dir)
			const size = 8 * mib
			options["size"] = size
			d.create("image", options)
			d.qcow2("image", nil)
			d.export("image")
			g := d.connect("image")
			model := make([]byte, size)
			failed := 0
			write := func() (err error) {
				n := 1 + random.IntN(40000)
				at := random.IntN(size - n)
				part := model[at : at+n]
				fill := byte(random.Uint32())
				b := slices.Repeat([]byte{fill}, n)
				if random.IntN(6) == 0 {
					_ = g.Trim(t.Context(), uint64(at), uint32(n), 0)
					err = fmt.Errorf("read it again")
				} else if err = g.WriteAt(t.Context(), b, uint64(at), 0); err == nil {
					copy(part, b)
				}
				if err != nil { // any of it may have been written
					was := slices.Clone(part)
					must(t, g.ReadAt(t.Context(), part, uint64(at)))
					for i := range part {
						if part[i] != was[i] && part[i] != fill && part[i] != 0 {
							t.Fatalf("offset %d reads %d after a write of %d over %d failed", at+i, part[i], fill, was[i])
						}
					}
				}
				return err
			}
			for range 400 {
				if write() != nil {
					failed++
				}
				if random.IntN(20) == 0 {
					_ = g.Flush(t.Context())
				}
			}
			if failed < 100 {
				t.Errorf("only %d requests failed", failed)
			}
			same(t, "on the full disk", d.read("image"), model)
			resize(64 * mib)
			for range 100 {
				if err := write(); err != nil && err.Error() != "read it again" {
					t.Fatalf("with room again: %v", err)
				}
			}
			must(t, g.Flush(t.Context()))
			same(t, "with room again", d.read("image"), model)
			d.stop()
			left, err := os.ReadFile(d.path("image"))
			must(t, err)
			path := filepath.Join(folder(t), "image") // where other systems see it, too
			must(t, os.WriteFile(path, left, 0o600))
			inOrder(t, path, false)
			holds(t, path, model)
		})
	}
}
