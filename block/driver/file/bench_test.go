// SPDX-License-Identifier: Apache-2.0

package file

import (
	"testing"

	"github.com/blkmirror/blkmirror/block"
)

// BenchmarkRequests is what a request to an image in the page cache costs; the kernel has the largest part. Allocations are
// counted by TestRequestsDoNotAllocate.
func BenchmarkRequests(b *testing.B) {
	const size = 16 << 20
	f := mustOpen(b, Options{Filename: newImage(b, b.TempDir(), size)})
	small, large := make([]byte, 4096), make([]byte, 1<<20)
	at := int64(0)
	next := func(n int) int64 {
		at = (at + 1<<20) % (size - int64(n) + 1)
		return at
	}
	for _, c := range []struct {
		name  string
		bytes int
		do    func() error
	}{
		{"write 4 KiB", len(small), func() error { return f.WriteAt(bg, small, next(len(small)), 0) }},
		{"write 1 MiB", len(large), func() error { return f.WriteAt(bg, large, next(len(large)), 0) }},
		{"read 4 KiB", len(small), func() error { return f.ReadAt(bg, small, next(len(small))) }},
		{"read 1 MiB", len(large), func() error { return f.ReadAt(bg, large, next(len(large))) }},
		{"status", 0, func() error { _, err := f.BlockStatus(bg, next(1), 4096); return err }},
		{"zeroes 4 KiB", 0, func() error { return f.WriteZeroes(bg, next(4096), 4096, block.MayUnmap) }},
	} {
		b.Run(c.name, func(b *testing.B) {
			b.SetBytes(int64(c.bytes))
			b.ReportAllocs()
			for b.Loop() {
				must(b, c.do())
			}
		})
	}
}
