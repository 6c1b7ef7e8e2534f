// SPDX-License-Identifier: Apache-2.0

package qcow2

import (
	"encoding/binary"
	"testing"
	"time"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/blocktest"
)

// fuzzBases are images to change: of every kind, with something in them.
func fuzzBases(t testing.TB) [][]byte {
	var list [][]byte
	for _, c := range []CreateOptions{{ClusterSize: 512}, {ClusterSize: 512, Version: 2}, {ClusterSize: 16384, ExtendedL2: true},
		{ClusterSize: 1024, RefcountBits: 1, LazyRefcounts: true}} {
		c.Size = 256 * kib
		i := newImage(t, c, Options{}, nil)
		for at := int64(0); at < c.Size; at += 37 * kib {
			must(t, i.node.WriteAt(bg, pattern(5000, 1), at, 0))
		}
		if c.Version != 2 {
			must(t, i.node.WriteZeroes(bg, 64*kib, 50*kib, block.MayUnmap))
		}
		must(t, i.node.Flush(bg))
		list = append(list, i.mem.Bytes())
	}
	return list
}

// use does everything with a disk that could trip over its image.
func use(n *block.Node) {
	size := n.Size()
	p := make([]byte, 3000)
	for _, at := range []int64{0, 3000, 37 * kib, 64 * kib, 100 * kib, size / 2, size - 3000} {
		if at < 0 || at+int64(len(p)) > size {
			continue
		}
		_ = n.ReadAt(bg, p, at)
		_, _ = n.BlockStatus(bg, at, size-at)
		_, _, _ = n.Space(bg, at, size-at)
		_ = n.WriteAt(bg, p, at, 0)
		_ = n.WriteZeroes(bg, at, min(size-at, 40*kib), block.MayUnmap)
		_ = n.Discard(bg, at, min(size-at, 5000))
		_ = n.WriteAt(bg, p, at, block.FUA)
	}
	_ = n.Flush(bg)
}

// FuzzOpen changes bytes of images, four bytes of patch each: place and value.
func FuzzOpen(f *testing.F) {
	bases := fuzzBases(f)
	for i := range bases {
		f.Add(uint8(i), []byte{0, 0, 75, 1})              // dirty
		f.Add(uint8(i), []byte{0, 0, 30, 200})            // size
		f.Add(uint8(i), []byte{0, 0, 23, 21})             // cluster_bits
		f.Add(uint8(i), []byte{0, 0, 46, 0, 0, 0, 45, 9}) // L1 table
		f.Add(uint8(i), []byte{0, 2, 6, 9, 0, 2, 0, 255})
		f.Add(uint8(i), []byte{0, 6, 6, 9, 0, 6, 0, 255})
	}
	f.Fuzz(func(t *testing.T, which uint8, patch []byte) {
		image := append([]byte(nil), bases[int(which)%len(bases)]...)
		for ; len(patch) >= 4; patch = patch[4:] {
			image[int(binary.BigEndian.Uint32(patch)>>8)%len(image)] = patch[3]
		}
		for _, readOnly := range []bool{true, false} {
			useImage(t, image, readOnly)
		}
	})
}

// FuzzHeader takes the image as it comes.
func FuzzHeader(f *testing.F) {
	for _, b := range fuzzBases(f) {
		f.Add(b[:min(len(b), 2048)])
	}
	f.Fuzz(func(t *testing.T, image []byte) { useImage(t, image, false) })
}

func useImage(t *testing.T, image []byte, readOnly bool) {
	watch := time.AfterFunc(20*time.Second, func() { panic("an image makes the driver hang") })
	defer watch.Stop()
	g := block.NewGraph()
	file := blocktest.NewNode(t, g, "file", blocktest.NewMemOf(image, blocktest.MemOptions{}), block.Options{Discard: true})
	var d *Disk
	var n *block.Node
	err := g.Change(bg, func(tx *block.Tx) (err error) {
		n, err = tx.AddNode(block.NodeConfig{Name: "disk", DriverName: "qcow2", Options: block.Options{ReadOnly: readOnly, Discard: true},
			Children: []block.Child{{Name: "file", Node: file}}, Monitor: true,
			Open: func(edges []*block.Edge) (block.Driver, error) {
				var err error
				d, err = Open(bg, Options{ReadOnly: readOnly, Unmap: true}, Children{File: edges[0]})
				return d, err
			}})
		return err
	})
	if err != nil {
		return
	}
	use(n)
	_ = d.Settle(bg)
	_ = d.Close() // else the timer that cleans its cache keeps it, and the image, in memory
}
