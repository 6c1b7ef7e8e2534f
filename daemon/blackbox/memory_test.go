// SPDX-License-Identifier: Apache-2.0

package blackbox

import (
	"os"
	"testing"
	"time"
)

func TestIdleMemory(t *testing.T) {
	d := start(t)
	d.disks(64<<20, nil)
	g := d.guest("src")
	must(t, g.ReadAt(t.Context(), make([]byte, 1<<20), 0))
	if rss := d.memory("VmRSS"); rss > 25<<20 {
		t.Errorf("an idle daemon takes %d KiB", rss>>10)
	}
}

// A mirror takes memory for its bitmaps and buffers, and time for the data that there is.
func TestHugeThinDisk(t *testing.T) {
	const size, extents, chunk, buffers = 1 << 40, 256, 64 << 10, 16 << 20
	dir := folder(t)
	for _, name := range []string{"probe"} {
		f, err := os.Create(dir + "/" + name)
		must(t, err)
		err = f.Truncate(size)
		_ = f.Close()
		if err != nil {
			t.Skipf("no files of 1 TiB here: %v", err)
		}
	}
	d := start(t)
	var offsets []int64
	for i := range int64(extents) {
		offsets = append(offsets, i*(size/extents)+i*4096)
	}
	image(t, d.path("src.img"), size, chunk, offsets...)
	image(t, d.path("dst.img"), size, 0)
	d.disk("src", d.path("src.img"), nil)
	d.disk("dst", d.path("dst.img"), nil)
	d.export("src")
	before := d.memory("VmHWM")
	began := time.Now()
	d.mirror(nil)
	d.wait("BLOCK_JOB_READY", nil)
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("ready after %v", took)
	}
	// Two bitmaps with a bit per chunk, small ones of what is not flushed, the buffers, and some slack.
	const limit = 2*(size/chunk/8) + buffers + 12<<20
	if grown := d.memory("VmHWM") - before; grown > limit {
		t.Errorf("the mirror took %d KiB, more than %d", grown>>10, limit>>10)
	}
	j := d.job()
	if j.Len != size || j.Offset != size {
		t.Errorf("len %d, offset %d", j.Len, j.Offset)
	}
	d.pivot()
	var info os.FileInfo
	info, err := os.Stat(d.path("dst.img"))
	must(t, err)
	if got := allocated(info); got < extents*chunk || got > 2*extents*chunk+1<<20 {
		t.Errorf("the target takes %d KiB", got>>10)
	}
}
