// SPDX-License-Identifier: Apache-2.0

package qcow2

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/blkmirror/blkmirror/block"
)

// TestUnusedTablesLeaveTheCaches: what is used stays, what is not goes after one interval or two, and what is dirty stays until it is
// in the file.
func TestUnusedTablesLeaveTheCaches(t *testing.T) {
	for _, seconds := range []uint64{0, 10} {
		synctest.Test(t, func(t *testing.T) {
			i := newImage(t, CreateOptions{Size: 8 * mib, ClusterSize: 512}, Options{CacheCleanInterval: &seconds}, nil)
			d := i.disk
			cached := func() (slices, blocks int) {
				d.maps.Lock()
				defer d.maps.Unlock()
				d.refs.Lock()
				defer d.refs.Unlock()
				return len(d.maps.slices), len(d.refs.blocks)
			}
			model := pattern(mib, 3)
			must(t, i.node.WriteAt(bg, model, 0, 0))
			full, _ := cached()
			time.Sleep(time.Minute)
			if n, _ := cached(); n != full {
				t.Errorf("%d slices of %d dirty ones are left", n, full)
			}
			must(t, i.node.Flush(bg))
			for range 60 {
				time.Sleep(time.Second)
				must(t, i.node.ReadAt(bg, make([]byte, 512), 5*512))
			}
			want, wantBlocks := 1, 0
			if seconds == 0 {
				want, wantBlocks = full, 4
			}
			if n, blocks := cached(); n != want || blocks != wantBlocks {
				t.Errorf("every %d s: %d slices of %d are left, and %d blocks", seconds, n, full, blocks)
			}
			time.Sleep(time.Minute)
			d.cleaner.Lock()
			armed := d.cleaner.armed
			d.cleaner.Unlock()
			if n, _ := cached(); seconds > 0 && (n != 0 || armed) {
				t.Errorf("%d slices are left, the timer runs: %v", n, armed)
			}
			must(t, i.node.WriteAt(bg, model[:700], 700, block.FUA))
			copy(model[700:], model[:700])
			i.agrees(t, append(model, make([]byte, 7*mib)...))
			i.settled(t)
			must(t, d.Close())
			time.Sleep(time.Minute)
			if n, _ := cached(); n == 0 {
				t.Error("the timer runs after Close")
			}
		})
	}
}
