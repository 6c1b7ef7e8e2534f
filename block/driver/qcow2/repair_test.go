// SPDX-License-Identifier: Apache-2.0

package qcow2

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/blocktest"
)

// TestMissingRefcountBlocks takes refcount blocks out of images, of those that were closed and of those that were not: the first
// write makes them anew.
func TestMissingRefcountBlocks(t *testing.T) {
	for name, c := range map[string]CreateOptions{
		"512":    {ClusterSize: 512},
		"64-bit": {ClusterSize: 512, RefcountBits: 64},
		"lazy":   {ClusterSize: 512, RefcountBits: 64, LazyRefcounts: true},
	} {
		for _, lost := range []int{0, 1, 3, 8, -1} {
			t.Run(fmt.Sprintf("%s/%d", name, lost), func(t *testing.T) {
				c.Size = 4 * mib
				i := newImage(t, c, Options{}, nil)
				model := pattern(4*mib, 5)
				must(t, i.node.WriteAt(bg, model, 0, 0))
				if c.LazyRefcounts {
					must(t, i.node.Flush(bg))
				} else {
					i.settled(t)
				}
				b := i.mem.Bytes()
				h, err := readHeader(bg, bytesReader(b))
				must(t, err)
				table := b[h.refTableOffset : h.refTableOffset+uint64(h.refTableClusters)*512]
				entries := 0
				for entries*8 < len(table) && binary.BigEndian.Uint64(table[entries*8:]) != 0 {
					entries++
				}
				for at := range entries {
					if lost == at || lost < 0 {
						binary.BigEndian.PutUint64(table[at*8:], 0)
					}
				}
				if lost < 0 { // the table, too
					binary.BigEndian.PutUint32(b[56:], 1)
				}
				broken := over(t, blocktest.NewMemOf(b, blocktest.MemOptions{}), nil, Options{}, nil)
				broken.agrees(t, model)
				must(t, broken.node.WriteAt(bg, []byte("repaired"), 12345, 0))
				copy(model[12345:], "repaired")
				must(t, broken.disk.Settle(bg))
				check(t, broken.mem.Bytes(), 0)
				broken.agrees(t, model)
				if lost < 9 {
					broken.compare(t, model, nil)
				}
			})
		}
	}
}

// TestImageOnDevice has the file be longer than the image, as a device is, and not able to grow.
func TestImageOnDevice(t *testing.T) {
	i := newImage(t, CreateOptions{Size: mib, ClusterSize: 512}, Options{}, nil)
	b := append(i.mem.Bytes(), bytes.Repeat([]byte{0xee}, 3*mib)...) // nobody says that it reads as zeroes
	on := over(t, blocktest.NewMemOf(b, blocktest.MemOptions{}), nil, Options{}, nil)
	on.mem.SetHook(func(_ context.Context, c blocktest.Call) error {
		if c.Op == block.OpResize {
			return block.NotSupported
		}
		return nil
	})
	model := make([]byte, 2*mib)
	on.scribble(t, model[:mib], rand.New(rand.NewPCG(1, 2)))
	blocktest.Change(t, on.g, func(tx *block.Tx) error { return tx.Resize(bg, on.node, 2*mib) }) // another L1 table
	on.scribble(t, model, rand.New(rand.NewPCG(1, 3)))
	on.agrees(t, model)
	on.settled(t)
	if n := len(on.mem.Bytes()); n != len(b) {
		t.Errorf("the device has %d bytes now", n)
	}
}
