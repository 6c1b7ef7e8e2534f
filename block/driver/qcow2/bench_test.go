// SPDX-License-Identifier: Apache-2.0

package qcow2

import (
	"path/filepath"
	"testing"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/blocktest"
	"github.com/blkmirror/blkmirror/block/driver/file"
)

// onFile makes an image in a file.
func onFile(b *testing.B, c CreateOptions) *image {
	b.Helper()
	name := filepath.Join(b.TempDir(), "image.qcow2")
	if err := file.Create(bg, file.CreateOptions{Filename: name}); err != nil {
		b.Fatal(err)
	}
	f, err := file.Open(file.Options{Filename: name})
	if err != nil {
		b.Fatal(err)
	}
	i := &image{g: block.NewGraph(), options: Options{Unmap: true}}
	i.file = blocktest.NewNode(b, i.g, "file", f, block.Options{Discard: true})
	backend := blocktest.Attach(b, i.g, i.file, "create", block.PermAll, block.PermAll)
	must(b, Create(bg, c, &backend.Edge, nil))
	blocktest.Detach(b, i.g, backend)
	i.open(b)
	return i
}

func BenchmarkWrite(b *testing.B) {
	const size = 4 << 30
	for _, c := range []struct {
		name       string
		n          int64
		sequential bool
		extended   bool
		again      bool // write what is allocated
	}{
		{"1MiB/new", mib, true, false, false},
		{"64KiB/new", 64 * kib, true, false, false},
		{"4KiB/new", 4 * kib, false, false, false},
		{"4KiB/new/extended", 4 * kib, false, true, false},
		{"4KiB/allocated", 4 * kib, false, false, true},
	} {
		b.Run(c.name, func(b *testing.B) {
			i := onFile(b, CreateOptions{Size: size, ExtendedL2: c.extended})
			p := pattern(int(c.n), 1)
			span := int64(size)
			if c.again {
				span = 64 * mib
				for off := int64(0); off < span; off += mib {
					must(b, i.disk.WriteAt(bg, pattern(mib, 1), off, 0))
				}
			}
			b.SetBytes(c.n)
			b.ReportAllocs()
			off, step := int64(0), c.n
			if !c.sequential {
				step = 4111 * c.n
			}
			for b.Loop() {
				must(b, i.disk.WriteAt(bg, p, off, 0))
				off = (off + step) % (span - mib) &^ (c.n - 1)
			}
			b.StopTimer()
			must(b, i.disk.Settle(bg))
		})
	}
}

func BenchmarkRead(b *testing.B) {
	for _, n := range []int64{4 * kib, mib} {
		b.Run(map[int64]string{4 * kib: "4KiB", mib: "1MiB"}[n], func(b *testing.B) {
			i := onFile(b, CreateOptions{Size: 256 * mib})
			for off := int64(0); off < 256*mib; off += mib {
				must(b, i.disk.WriteAt(bg, pattern(mib, 1), off, 0))
			}
			p := make([]byte, n)
			b.SetBytes(n)
			b.ReportAllocs()
			off := int64(0)
			for b.Loop() {
				must(b, i.disk.ReadAt(bg, p, off))
				off = (off + 4111*n) % (255 * mib) &^ (n - 1)
			}
		})
	}
}

func BenchmarkStatus(b *testing.B) {
	i := onFile(b, CreateOptions{Size: 1 << 40})
	for off := int64(0); off < 64*mib; off += 128 * kib {
		must(b, i.disk.WriteAt(bg, pattern(64*kib, 1), off, 0))
	}
	b.ReportAllocs()
	off := int64(0)
	for b.Loop() {
		e, err := i.disk.BlockStatus(bg, off, 1<<40-off)
		must(b, err)
		if off += e.Len; off == 1<<40 {
			off = 0
		}
	}
}
