// SPDX-License-Identifier: Apache-2.0

package nbd

import (
	"context"
	"sync/atomic"
	"testing"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/blocktest"
	"github.com/blkmirror/blkmirror/block/export/nbdserver"
)

func BenchmarkDisk(b *testing.B) {
	for _, c := range []struct {
		name  string
		size  int
		depth int
		do    func(ctx context.Context, d *Disk, p []byte, off int64) error
	}{
		{"read/4k/qd1", 4 * kib, 1, read}, {"read/4k/qd16", 4 * kib, 16, read}, {"read/1M/qd4", mib, 4, read},
		{"write/4k/qd1", 4 * kib, 1, write}, {"write/4k/qd16", 4 * kib, 16, write}, {"write/1M/qd4", mib, 4, write},
	} {
		b.Run(c.name, func(b *testing.B) {
			h := newHouseOf(b, blocktest.NewMemOf(pattern(16*mib, 1), blocktest.MemOptions{}))
			d := open(b, h.options())
			b.SetBytes(int64(c.size))
			b.ReportAllocs()
			b.SetParallelism(max(c.depth/2, 1))
			var turn atomic.Int64
			b.RunParallel(func(pb *testing.PB) {
				p := make([]byte, c.size)
				for pb.Next() {
					if err := c.do(context.Background(), d, p, turn.Add(1)%16*mib); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}

func read(ctx context.Context, d *Disk, p []byte, off int64) error { return d.ReadAt(ctx, p, off) }
func write(ctx context.Context, d *Disk, p []byte, off int64) error {
	return d.WriteAt(ctx, p, off, 0)
}

// nothing is a disk that costs nothing and allocates nothing.
type nothing struct{}

func (nothing) Size() int64                                               { return 1 << 30 }
func (nothing) ReadAt(context.Context, []byte, int64) error               { return nil }
func (nothing) WriteAt(context.Context, []byte, int64, block.Flags) error { return nil }
func (nothing) Flush(context.Context) error                               { return nil }
func (nothing) Close() error                                              { return nil }

// TestNoAllocationPerRequest counts those of our server in this process, too.
func TestNoAllocationPerRequest(t *testing.T) {
	h := newFullHouse(t)
	h.stop()
	h.node = blocktest.NewNode(t, h.graph, "nothing", nothing{}, block.Options{})
	h.start(nbdserver.Config{Writable: true})
	d := open(t, h.options())
	for _, size := range []int{4 * kib, mib} {
		p := make([]byte, size)
		for name, do := range map[string]func(context.Context, *Disk, []byte, int64) error{"read": read, "write": write,
			"flush": func(ctx context.Context, d *Disk, _ []byte, _ int64) error { return d.Flush(ctx) }} {
			got := testing.AllocsPerRun(200, func() { must(t, do(t.Context(), d, p, 0)) })
			if got > 3 { //
				t.Errorf("%s of %d bytes: %.1f allocations", name, size, got)
			}
		}
	}
}
