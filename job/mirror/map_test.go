// SPDX-License-Identifier: Apache-2.0

package mirror

import (
	"math/rand/v2"
	"reflect"
	"testing"

	"github.com/blkmirror/blkmirror/block/bitmap"
)

// dumbMap counts chunk by chunk.
func dumbMap(p *planner, l mapLayout) []Cell {
	cells := make([]Cell, l.count())
	for at := l.chunks.First; at < l.chunks.End; at++ {
		off, n := p.d.Bytes(bitmap.Chunks{First: at, End: at + 1})
		c := &cells[(at-l.chunks.First)/l.per]
		switch d, z := p.d.Test(at), p.z.Test(at); {
		case p.claimedFrom(off, off+n) != nil:
			c.InFlight++
		case d && z:
			c.DirtyZero++
		case d:
			c.Dirty++
		case off+n > p.scanned:
			c.Unscanned++
		case z:
			c.Zero++
		default:
			c.Copied++
		}
	}
	return cells
}

func TestMapCounts(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	dice := rand.New(rand.NewPCG(seed, 1))
	for range 300 {
		// The longest disks take more than one slice, by chunks and by cells.
		size := 512 * (1 + dice.Int64N([...]int64{10, 5000, 1 << 21}[dice.IntN(3)]))
		p, err := newPlanner(size, 512<<dice.IntN(2), WriteBlocking)
		if err != nil {
			t.Fatal(err)
		}
		somewhere := func() (off, n int64) {
			off = dice.Int64N(size)
			return off, 1 + dice.Int64N(min(size-off, 1+dice.Int64N(size)))
		}
		for range dice.IntN(20) {
			off, n := somewhere()
			c := p.d.Outward(off, n)
			switch dice.IntN(4) {
			case 0:
				p.d.Set(c)
			case 1:
				p.d.Clear(c)
			case 2:
				p.z.Set(c)
			case 3:
				p.z.Clear(c)
			}
		}
		p.scanned = [...]int64{0, size, dice.Int64N(size + 1)}[dice.IntN(3)]
		for range dice.IntN(5) {
			off, n := somewhere()
			n = min(n, 1+dice.Int64N(100<<10))
			p.claims = append(p.claims, &op{off: off, end: off + n})
		}
		off, n := somewhere()
		l := newMapLayout(p.d.Layout, off, n, 1+dice.IntN(MaxCells))
		if l.count() > MaxCells || l.per > 1 && l.count() == 1 && l.chunks.Len() > l.per {
			t.Fatalf("%+v has %d cells", l, l.count())
		}
		got := make([]Cell, l.count())
		for first := 0; first < len(got); {
			next := p.countCells(l, got, first)
			if next < first {
				t.Fatalf("the count went back from cell %d to %d", first, next)
			}
			first = next
		}
		if want := dumbMap(p, l); !reflect.DeepEqual(got, want) {
			for i := range got {
				if got[i] != want[i] {
					t.Fatalf("%+v, cell %d: %+v, want %+v", l, i, got[i], want[i])
				}
			}
		}
	}
}

func BenchmarkMap64TiB(b *testing.B) {
	p, err := newPlanner(64<<40, 64<<10, Background)
	if err != nil {
		b.Fatal(err)
	}
	p.markAll()
	p.z.Set(bitmap.Chunks{First: 1, End: p.z.All().End})
	l := newMapLayout(p.d.Layout, 0, p.d.Size(), MaxCells)
	b.ReportAllocs()
	slices := 0
	for b.Loop() {
		cells := make([]Cell, l.count())
		for first := 0; first < len(cells); slices++ {
			first = p.countCells(l, cells, first)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(slices), "µs/slice")
}
