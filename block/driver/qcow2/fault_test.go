// SPDX-License-Identifier: Apache-2.0

package qcow2

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/blocktest"
)

// TestFaults has requests to the file fail at random, before or after they were carried out, and cuts the power at random: what
// is in memory stays right, so nothing is lost that was acknowledged, no cluster is used twice, and the image is never corrupt.
func TestFaults(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	for name, c := range map[string]CreateOptions{
		"512":        {ClusterSize: 512},
		"512-64bit":  {ClusterSize: 512, RefcountBits: 64},
		"1k-1bit":    {ClusterSize: 1024, RefcountBits: 1},
		"extended16": {ExtendedL2: true, ClusterSize: 16 << 10},
		"lazy":       {LazyRefcounts: true, ClusterSize: 512, RefcountBits: 64},
		"v2":         {Version: 2, ClusterSize: 1024},
		"64k":        {},
	} {
		for round := range 2 {
			t.Run(fmt.Sprintf("%s/%d", name, round), func(t *testing.T) {
				c.Size = 512 * kib << round
				newFaulty(t, chance(t, seed), c).run()
			})
		}
	}
}

// faulty is an image on a file that fails now and then.
type faulty struct {
	*image
	t      *testing.T
	random *rand.Rand
	h      *history
	on     bool
	dirty  bool // something failed since the last look
	events []string
}

func newFaulty(t *testing.T, random *rand.Rand, c CreateOptions) *faulty {
	small := int64(1024)
	f := &faulty{t: t, random: random, h: newHistory(4*mib, 512)}
	o := Options{Unmap: random.IntN(2) == 0, L2CacheSize: &small, L2CacheEntrySize: new(int64),
		OnCorrupt: func(c Corruption) { f.events = append(f.events, c.Message) }}
	*o.L2CacheEntrySize = 512
	f.image = newImage(t, c, o, nil)
	hook := func(before bool) blocktest.Hook {
		return func(_ context.Context, c blocktest.Call) error {
			if !f.on || c.Op == block.OpStatus || random.IntN(25) > 0 || before != (random.IntN(3) > 0) ||
				!before && c.Op == block.OpResize { // files do not do that
				return nil
			}
			f.dirty = true
			return &block.Error{Kind: []block.Kind{block.KindIO, block.KindNoSpace}[random.IntN(2)], Op: c.Op}
		}
	}
	f.mem.SetHook(hook(true))
	f.mem.SetAfterHook(hook(false))
	return f
}

func (f *faulty) run() {
	for range 250 {
		f.on = f.random.IntN(3) > 0
		f.step()
		f.on = false
		if len(f.events) > 0 {
			f.t.Fatalf("the image was called corrupt: %q", f.events)
		}
		if f.random.IntN(10) == 0 {
			f.crash()
		}
	}
	must(f.t, f.disk.Settle(bg))
	check(f.t, f.mem.Bytes(), 8) // tables that the header may have led to when it could not be written
	f.compare(0, f.node.Size())
}

func (f *faulty) step() {
	size := f.node.Size()
	n := min(512*(1+f.random.Int64N(100)), size)
	off := f.random.Int64N((size-n)/512+1) * 512
	v := byte(1 + f.random.IntN(250))
	switch f.random.IntN(14) {
	default:
		f.change(off, n, v, f.node.WriteAt(bg, bytes.Repeat([]byte{v}, int(n)), off, block.Flags(f.random.IntN(4)/3)*block.FUA))
	case 0, 1:
		f.change(off, n, 0, f.node.WriteZeroes(bg, off, n, block.Flags(f.random.IntN(2))*block.MayUnmap))
	case 2:
		err := f.node.Discard(bg, off, n)
		f.on = false
		got := make([]byte, n)
		must(f.t, f.node.ReadAt(bg, got, off))
		for at := int64(0); at < n; at += 512 {
			if b := got[at]; b != 0 && b != f.h.now[(off+at)/512] {
				f.t.Fatalf("byte %d is %#x after a discard (%v)", off+at, b, err)
			}
			f.h.set(off+at, 512, 0)
			f.h.now[(off+at)/512] = got[at]
		}
	case 3, 4, 5:
		if f.node.Flush(bg) == nil {
			f.h.flush()
		}
	case 6:
		f.resize((f.random.Int64N(3*mib) + 128*kib) &^ 511)
	case 7:
		f.on = f.random.IntN(2) == 0
		if f.disk.Settle(bg) == nil {
			f.h.flush()
		}
	}
}

// change notes a request that wrote v. What failed has been done, or has not, in each sector.
func (f *faulty) change(off, n int64, v byte, err error) {
	f.on = false
	was := bytes.Clone(f.h.now[off/512 : (off+n)/512])
	f.h.set(off, n, v)
	if err == nil {
		f.compare(off, n)
		return
	}
	got := make([]byte, n)
	must(f.t, f.node.ReadAt(bg, got, off))
	for u := range was {
		b := got[u*512]
		if b != v && b != was[u] {
			f.t.Fatalf("byte %d is %#x after a write of %#x over %#x failed: %v", off+int64(u)*512, b, v, was[u], err)
		}
		f.h.now[off/512+int64(u)] = b
	}
}

func (f *faulty) resize(size int64) {
	old := f.node.Size()
	err := f.g.Change(bg, func(tx *block.Tx) error { return tx.Resize(bg, f.node, size) })
	f.on = false
	now := f.node.Size()
	switch {
	case now != f.disk.Size() || now != size && now != old || err == nil && now != size:
		f.t.Fatalf("resized from %d to %d, and it has %d (the driver %d): %v", old, size, now, f.disk.Size(), err)
	case size > old:
		if now == size {
			f.h.set(old, size-old, 0)
		}
		return
	}
	was := bytes.Clone(f.h.now)
	f.h.set(size, old-size, 0)
	if now == old { // what was to go may be gone
		got := make([]byte, old)
		must(f.t, f.node.ReadAt(bg, got, 0))
		for u := size / 512; u < old/512; u++ {
			if b := got[u*512]; b != 0 && b != was[u] {
				f.t.Fatalf("byte %d is %#x after it was not resized: %v", u*512, b, err)
			}
			f.h.now[u] = got[u*512]
		}
	}
}

func (f *faulty) compare(off, n int64) {
	f.t.Helper()
	got := make([]byte, n)
	must(f.t, f.node.ReadAt(bg, got, off))
	for i, b := range got {
		if at := off + int64(i); b != f.h.now[at/512] {
			f.t.Fatalf("byte %d is %#x and not %#x", at, b, f.h.now[at/512])
		}
	}
}

// crash looks at what a power loss would leave.
func (f *faulty) crash() {
	f.t.Helper()
	f.compare(0, f.node.Size())
	after := f.mem.Crash(f.random.Uint64())
	if _, err := consistent(after.Bytes()); err != nil {
		f.t.Fatalf("the image is corrupt after a crash: %v", err)
	}
	found := over(f.t, after, nil, f.options, nil)
	f.h.check(f.t, found.node)
}
