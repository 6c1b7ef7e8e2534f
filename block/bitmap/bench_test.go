// SPDX-License-Identifier: Apache-2.0

package bitmap

import (
	"math/rand/v2"
	"testing"
)

// The largest disk that the mirror is to be good for.
const bigSize, bigGranularity = 64 << 40, 64 << 10

// ways are what is done to bitmaps while somebody waits for it.
func ways(b *Bitmap) map[string]func() {
	all := b.All()
	last, most := all.End-1, all.End
	some := Chunks{5, all.End - 5} // not all, or the count that is kept would be the answer
	random := rand.New(rand.NewPCG(1, 2))
	return map[string]func(){
		"set and clear all":        func() { b.Set(all); b.Clear(all) },
		"set and clear nearly all": func() { b.Set(some); b.Clear(some) },
		"count nearly all":         func() { b.Set(Chunks{last, most}); b.Count(some) },
		"find the only one":        func() { b.Set(Chunks{last, most}); b.NextSetBefore(0, most) },
		"find the end of a run":    func() { b.Set(Chunks{last, most}); b.RunEnd(0, most) },
		"set and clear 1 MiB": func() {
			c := b.Outward(random.Int64N(b.Size()-1<<20), 1<<20)
			b.Set(c)
			b.Clear(c)
		},
		"test 1 MiB": func() {
			c := b.Outward(random.Int64N(b.Size()-1<<20), 1<<20)
			b.AllSet(c)
			b.AnySet(c)
		},
	}
}

// TestHotPathsDoNotAllocate is the gate for what requests and scans cost.
func TestHotPathsDoNotAllocate(t *testing.T) {
	b := mustNew(t, 1<<40, bigGranularity)
	for name, do := range ways(b) {
		if n := testing.AllocsPerRun(10, do); n > 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

// A bitmap takes one bit for each chunk, and no more than its head besides.
func TestMemory(t *testing.T) {
	b := mustNew(t, 1<<40, bigGranularity)
	if got, want := len(b.bits.Words())*64, 1<<40/bigGranularity; got != want {
		t.Errorf("%d bits for %d chunks", got, want)
	}
}

// Benchmark64TiB is what there is to be done on a disk of 64 TiB with a granularity of 64 KiB.
func Benchmark64TiB(b *testing.B) {
	m, err := New(bigSize, bigGranularity)
	if err != nil {
		b.Fatal(err)
	}
	m.Set(m.All()) // its memory is there
	for name, do := range ways(m) {
		b.Run(name, func(b *testing.B) {
			m.Clear(m.All())
			b.ReportAllocs()
			for b.Loop() {
				do()
			}
		})
	}
}
