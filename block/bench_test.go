// SPDX-License-Identifier: Apache-2.0

package block_test

import (
	"testing"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/blocktest"
)

// BenchmarkRequests is what the graph adds to a request of a guest: its gate, its checks and its counts. The driver does nothing.
// Allocations are counted by TestRequestsDoNotAllocate.
func BenchmarkRequests(b *testing.B) {
	g := block.NewGraph()
	n := blocktest.NewNode(b, g, "disk", &silent{mib}, block.Options{})
	guest := blocktest.Attach(b, g, n, "guest", readWrite, block.PermAll)
	p := make([]byte, 4096)
	for name, do := range map[string]func() error{
		"read":   func() error { return guest.ReadAt(bg, p, 0) },
		"write":  func() error { return guest.WriteAt(bg, p, 0, 0) },
		"flush":  func() error { return guest.Flush(bg) },
		"status": func() error { _, err := guest.BlockStatus(bg, 0, 4096); return err },
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if err := do(); err != nil {
						b.Error(err)
					}
				}
			})
		})
	}
}

// BenchmarkBuffers is what taking a buffer that was used before costs.
func BenchmarkBuffers(b *testing.B) {
	for name, n := range map[string]int{"4 KiB": 4 << 10, "1 MiB": 1 << 20} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					block.GetBuffer(n).Release()
				}
			})
		})
	}
}
