// SPDX-License-Identifier: Apache-2.0

package images

import (
	"encoding/json"
	"testing"
)

// bitmaps tells what qemu-img knows of the bitmaps in an image: name and flags.
func bitmaps(t *testing.T, path string) map[string][]string {
	t.Helper()
	var info struct {
		Specific struct {
			Data struct {
				Bitmaps []struct {
					Name  string
					Flags []string
				}
			}
		} `json:"format-specific"`
	}
	must(t, json.Unmarshal([]byte(run(t, peers()[len(peers())-1], "info", "--output=json", path)), &info))
	list := map[string][]string{}
	for _, b := range info.Specific.Data.Bitmaps {
		list[b.Name] = b.Flags
	}
	return list
}

// count is how many dirty bytes a bitmap of a node has; -1 if there is no such bitmap.
func (d *daemon) count(node, name string) int64 {
	d.t.Helper()
	var nodes []struct {
		NodeName string `json:"node-name"`
		Bitmaps  []struct {
			Name  string
			Count int64
		} `json:"dirty-bitmaps"`
	}
	must(d.t, d.query("query-named-block-nodes", nil, &nodes))
	for _, n := range nodes {
		for _, b := range n.Bitmaps {
			if n.NodeName == node && b.Name == name {
				return b.Count
			}
		}
	}
	return -1
}

// TestBitmaps: persistent bitmaps go on over restarts, qemu-img and a mirror's switch; after a kill they are not to be trusted.
func TestBitmaps(t *testing.T) {
	dir := folder(t)
	d := start(t, dir)
	const size = 8 * mib
	d.create("image", args{"size": size, "cluster-size": 4096})
	d.qcow2("image", nil)
	d.export("image")
	d.do("block-dirty-bitmap-add", args{"node": "image", "name": "kept", "persistent": true, "granularity": 4096})
	d.do("block-dirty-bitmap-add", args{"node": "image", "name": "still", "persistent": true, "disabled": true})
	d.do("block-dirty-bitmap-add", args{"node": "image", "name": "passing"})
	write := func(at uint64) {
		t.Helper()
		g := d.connect("image")
		defer g.Close()
		must(t, g.WriteAt(t.Context(), make([]byte, 4096), at, 0))
	}
	write(0)
	write(mib)
	d.stop()
	inOrder(t, d.path("image"), false)
	list := bitmaps(t, d.path("image"))
	if len(list) != 2 || len(list["kept"]) != 1 || list["kept"][0] != "auto" || len(list["still"]) != 0 {
		t.Fatalf("bitmaps %v", list)
	}

	d = start(t, dir)
	d.qcow2("image", nil)
	d.export("image")
	if n := d.count("image", "kept"); n != 8192 {
		t.Errorf("kept has %d dirty bytes", n)
	}
	write(2 * mib)
	// Bitmaps follow the disk; one that the target has already gets what the source's has.
	d.create("target", args{"size": size})
	d.qcow2("target", nil)
	d.do("block-dirty-bitmap-add", args{"node": "target", "name": "moved", "persistent": true, "granularity": 4096})
	d.do("blockdev-mirror", args{"job-id": "m", "device": "image", "target": "target", "sync": "full"})
	d.wait("BLOCK_JOB_READY", args{"device": "m"})
	d.do("block-dirty-bitmap-clear", args{"node": "target", "name": "moved"})
	d.do("block-dirty-bitmap-merge", args{"node": "target", "target": "moved", "bitmaps": []any{args{"node": "image", "name": "kept"}}})
	d.do("job-complete", args{"id": "m"})
	d.finish("m")
	write(3 * mib)
	if n := d.count("target", "moved"); n != 4*4096 {
		t.Errorf("moved has %d dirty bytes", n)
	}
	d.stop()
	for name, want := range map[string]int{"image": 0, "target": 3} {
		inOrder(t, d.path(name), false)
		if list := bitmaps(t, d.path(name)); len(list) != want {
			t.Errorf("%s: bitmaps %v", name, list)
		}
	}

	run(t, "qemu-img", "bitmap", "--add", "-f", "qcow2", d.path("target"), "theirs")
	run(t, "qemu-io", "-f", "qcow2", "-c", "write 4M 4k", d.path("target"))
	d = start(t, dir)
	d.do("blockdev-add", imageNode("image", d.path("target"), nil))
	d.export("image")
	if moved, theirs := d.count("image", "moved"), d.count("image", "theirs"); moved != 5*4096 || theirs != 65536 {
		t.Errorf("moved has %d dirty bytes, theirs %d", moved, theirs)
	}
	write(5 * mib)
	d.kill()
	for name, flags := range bitmaps(t, d.path("target")) {
		if name != "still" && (len(flags) == 0 || flags[0] != "in-use") {
			t.Errorf("after a kill, bitmap %s has the flags %v", name, flags)
		}
	}
	inOrder(t, d.path("target"), true)
	d = start(t, dir)
	d.do("blockdev-add", imageNode("image", d.path("target"), nil))
	d.do("block-dirty-bitmap-remove", args{"node": "image", "name": "moved"})
	d.stop()
	if list := bitmaps(t, d.path("target")); len(list) != 3 {
		t.Errorf("bitmaps %v", list)
	}
}
