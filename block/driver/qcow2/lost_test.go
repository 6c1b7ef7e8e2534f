// SPDX-License-Identifier: Apache-2.0

package qcow2

import (
	"context"
	"testing"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/blocktest"
)

// TestLostTables has the file lose all that was written when a flush fails. After somebody wrote the data again, the image is whole.
func TestLostTables(t *testing.T) {
	for _, c := range []CreateOptions{{ClusterSize: 1024}, {ClusterSize: 1024, LazyRefcounts: true}, {ClusterSize: 16384, ExtendedL2: true}} {
		for _, fails := range []int{1, 2, 3} {
			c.Size = 4 * mib
			i := newImage(t, c, Options{}, nil)
			must(t, i.node.WriteAt(bg, pattern(64*kib, 1), 0, block.FUA))
			flushes := 0
			i.mem.SetHook(func(ctx context.Context, call blocktest.Call) error {
				if call.Op != block.OpFlush {
					return nil
				}
				if flushes++; flushes != fails {
					return nil
				}
				old, now := i.mem.DurableBytes(), i.mem.Bytes()
				for off := 0; off < len(now); off += 512 {
					if string(now[off:off+512]) != string(old[off:off+512]) {
						must(t, i.mem.WriteAt(ctx, old[off:off+512], int64(off), 0))
					}
				}
				return &block.Error{Kind: block.KindIO, Op: block.OpFlush}
			})
			model := pattern(mib, 2)
			for failed := false; ; {
				must(t, i.node.WriteAt(bg, model, 2*mib, 0))
				if i.node.Flush(bg) != nil {
					failed = true
					i.node.ForgiveLoss()
				} else if failed || flushes >= fails {
					break
				}
			}
			after := i.mem.Crash(7)
			if _, err := consistent(after.Bytes()); err != nil {
				t.Fatalf("%+v, flush %d: %v", c, fails, err)
			}
			found := over(t, after, nil, Options{}, nil)
			got := make([]byte, len(model))
			must(t, found.node.ReadAt(bg, got, 2*mib))
			if string(got) != string(model) {
				t.Errorf("%+v, flush %d: the data is not there", c, fails)
			}
			i.settled(t)
		}
	}
}
