// SPDX-License-Identifier: Apache-2.0

package block_test

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/blocktest"
)

// Writers that own interleaved odd ranges write at once through a node that pads to units which they share. The disk
// must hold exactly what each wrote: a read-modify-write that undoes a neighbour's write would show. The driver checks
// that what reaches it keeps to its limits, and carries large requests out in pieces.
func TestPaddingUnderConcurrency(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	const size = 96*kib + 512
	for _, limits := range []block.Limits{
		{RequestAlign: 512},
		{RequestAlign: 4096},
		{RequestAlign: 512, MemoryAlign: 512, MaxTransfer: 512},
		{RequestAlign: 4096, MemoryAlign: 4096, MaxTransfer: 8192},
		{RequestAlign: 512, MaxTransfer: 16384},
		{MemoryAlign: 512, MaxTransfer: 3072},
		{MaxTransfer: 1000},
	} {
		for _, noZeroes := range []bool{false, true} {
			t.Run(fmt.Sprintf("%+v", limits), func(t *testing.T) {
				_, n, m := disk(t, blocktest.MemOptions{Size: size, Limits: limits, NonAtomic: true, NoZeroes: noZeroes}, block.Options{Discard: true})
				model := make([]byte, size)
				const writers, stripe = 6, 701
				var wg sync.WaitGroup
				for w := range writers {
					wg.Go(func() {
						random := rand.New(rand.NewPCG(seed, uint64(w)))
						for i := range 80 {
							// One of the stripes of this writer, or for the first also long runs in an area of its own.
							start := (w + writers*random.IntN(15)) * stripe
							end := start + stripe
							if w == 0 && i%4 == 0 {
								start, end = 64*kib+random.IntN(1000), size
							}
							off := start + random.IntN(end-start)
							length := 1 + random.IntN(end-off)
							own := model[off : off+length]
							var err error
							switch random.IntN(4) {
							case 0:
								clear(own)
								err = n.WriteZeroes(bg, int64(off), int64(length), block.MayUnmap)
							case 1:
								got := make([]byte, length)
								err = n.ReadAt(bg, got, int64(off))
								if err == nil && !bytes.Equal(got, own) {
									err = fmt.Errorf("%d+%d does not read as written", off, length)
								}
							default:
								for j := range own {
									own[j] = byte(w*40 + i + j)
								}
								err = n.WriteAt(bg, own, int64(off), 0)
							}
							if err != nil {
								t.Error(err)
								return
							}
						}
					})
				}
				wg.Wait()
				if got := m.Bytes(); !bytes.Equal(got, model) {
					for i := range got {
						if got[i] != model[i] {
							t.Fatalf("byte %d is %#x, not %#x", i, got[i], model[i])
						}
					}
				}
			})
		}
	}
}

// What reaches the driver, request by request.
func TestPadding(t *testing.T) {
	const size = 64*kib + 512
	aligned := func(n int) []byte { return bytes.Repeat([]byte{1}, n) }
	for _, c := range []struct {
		name   string
		limits block.Limits
		do     func(n *block.Node) error
		want   string
	}{
		{"aligned", block.Limits{RequestAlign: 4096}, func(n *block.Node) error { return n.WriteAt(bg, aligned(8192), 4096, block.FUA) },
			"[write 4096+8192 fua]"},
		{"inside one unit", block.Limits{RequestAlign: 4096}, func(n *block.Node) error { return n.WriteAt(bg, aligned(10), 100, block.FUA) },
			"[read 0+4096 write 0+4096 fua]"},
		{"head and tail", block.Limits{RequestAlign: 4096}, func(n *block.Node) error { return n.WriteAt(bg, aligned(12000), 100, 0) },
			"[read 0+4096 read 8192+4096 write 0+12288]"},
		{"head only", block.Limits{RequestAlign: 4096}, func(n *block.Node) error { return n.WriteAt(bg, aligned(8092), 100, 0) },
			"[read 0+4096 write 0+8192]"},
		{"tail only", block.Limits{RequestAlign: 4096}, func(n *block.Node) error { return n.WriteAt(bg, aligned(4097), 4096, 0) },
			"[read 8192+4096 write 4096+8192]"},
		{"end of the disk", block.Limits{RequestAlign: 4096}, func(n *block.Node) error { return n.WriteAt(bg, aligned(512), 64*kib, 0) },
			"[read 65536+4096 write 65536+4096]"},
		{"read", block.Limits{RequestAlign: 4096}, func(n *block.Node) error { return n.ReadAt(bg, make([]byte, 10), 4090) },
			"[read 0+8192]"},
		{"in pieces, durable at the end", block.Limits{RequestAlign: 512, MaxTransfer: 1024},
			func(n *block.Node) error { return n.WriteAt(bg, aligned(2560), 512, block.FUA) },
			"[write 512+1024 write 1536+1024 write 2560+512 fua]"},
		{"zeroes with edges", block.Limits{RequestAlign: 4096},
			func(n *block.Node) error { return n.WriteZeroes(bg, 100, 12000, block.MayUnmap|block.FUA) },
			"[read 0+4096 write 0+4096 write-zeroes 4096+4096 unmap read 8192+4096 write 8192+4096 fua]"},
		{"zeroes inside one unit", block.Limits{RequestAlign: 4096},
			func(n *block.Node) error { return n.WriteZeroes(bg, 100, 100, block.FUA) },
			"[read 0+4096 write 0+4096 fua]"},
		{"discard of whole units", block.Limits{RequestAlign: 4096}, func(n *block.Node) error { return n.Discard(bg, 100, 12000) },
			"[discard 4096+4096]"},
		{"discard up to the end", block.Limits{RequestAlign: 4096}, func(n *block.Node) error { return n.Discard(bg, 60*kib, 4*kib+512) },
			"[discard 61440+4608]"},
		{"discard of less than a unit", block.Limits{RequestAlign: 4096}, func(n *block.Node) error { return n.Discard(bg, 100, 4000) },
			"[]"},
	} {
		_, n, m := disk(t, blocktest.MemOptions{Size: size, Limits: c.limits}, block.Options{Discard: true})
		if err := c.do(n); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		if got := fmt.Sprint(m.Calls()); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}

func TestUnalignedMemoryIsCopied(t *testing.T) {
	_, n, m := disk(t, blocktest.MemOptions{Size: 4 * mib, Limits: block.Limits{RequestAlign: 512, MemoryAlign: 4096}}, block.Options{})
	b := block.GetBuffer(3*mib + 512)
	defer b.Release()
	p := b.B[512:] // not aligned to 4096
	for i := range p {
		p[i] = byte(i % 251)
	}
	must(t, n.WriteAt(bg, p, 512, block.FUA)) // the driver would refuse the memory
	if got := m.Bytes()[512 : 512+len(p)]; !bytes.Equal(got, p) {
		t.Error("something else was written")
	}
	last := m.Calls()[len(m.Calls())-1]
	if last.Flags != block.FUA || last.Off+last.Len != 512+int64(len(p)) {
		t.Errorf("the last piece was %v", last)
	}
	want := bytes.Clone(p)
	clear(p)
	must(t, n.ReadAt(bg, p, 512))
	if !bytes.Equal(p, want) {
		t.Error("something else was read")
	}
}

// A write that fails at one of its edges says so and gives its range back to others.
func TestAFailedPaddedWriteLetsOthersGoOn(t *testing.T) {
	_, n, m := disk(t, blocktest.MemOptions{Size: 64 * kib, Limits: block.Limits{RequestAlign: 4096}}, block.Options{})
	m.SetHook(func(_ context.Context, c blocktest.Call) error {
		if c.Op == block.OpRead {
			return context.DeadlineExceeded
		}
		return nil
	})
	if err := n.WriteAt(bg, []byte{1}, 5, 0); err == nil {
		t.Error("no error")
	}
	m.SetHook(nil)
	must(t, n.WriteAt(bg, []byte{1}, 5, 0))
}
