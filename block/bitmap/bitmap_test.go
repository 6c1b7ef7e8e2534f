// SPDX-License-Identifier: Apache-2.0

package bitmap

import (
	"math/rand/v2"
	"testing"
)

func TestRoundings(t *testing.T) {
	l, err := NewLayout(1000, 256)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		off, n          int64
		outward, inward Chunks
	}{
		{0, 256, Chunks{0, 1}, Chunks{0, 1}},
		{0, 1000, Chunks{0, 4}, Chunks{0, 4}},
		{1, 255, Chunks{0, 1}, Chunks{1, 1}},
		{1, 256, Chunks{0, 2}, Chunks{1, 1}},
		{256, 512, Chunks{1, 3}, Chunks{1, 3}},
		{768, 232, Chunks{3, 4}, Chunks{3, 4}}, // the last chunk is whole up to the end of the disk
		{769, 231, Chunks{3, 4}, Chunks{4, 4}},
		{768, 231, Chunks{3, 4}, Chunks{3, 3}},
		{100, 0, Chunks{0, 0}, Chunks{1, 1}},
	} {
		if got := l.Outward(c.off, c.n); got != c.outward {
			t.Errorf("Outward(%d, %d) = %v, want %v", c.off, c.n, got, c.outward)
		}
		if got := l.Inward(c.off, c.n); got != c.inward {
			t.Errorf("Inward(%d, %d) = %v, want %v", c.off, c.n, got, c.inward)
		}
	}
	if off, n := l.Bytes(Chunks{3, 4}); off != 768 || n != 232 {
		t.Errorf("the last chunk has %d bytes at %d", n, off)
	}
}

func TestBadLayout(t *testing.T) {
	for _, c := range [][2]int64{{10, 0}, {10, 3}, {10, -2}, {-1, 512}} {
		if _, err := NewLayout(c[0], c[1]); err == nil {
			t.Errorf("NewLayout(%d, %d) succeeded", c[0], c[1])
		}
	}
}

// TestAgainstModel runs random operations on a bitmap and on a slice of bools.
func TestAgainstModel(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	for range 50 {
		chunks := 1 + r.Int64N(1500)
		size := chunks*512 - r.Int64N(512)
		b, _ := New(size, 512)
		model := make([]bool, chunks)
		for range 200 {
			c := Chunks{r.Int64N(chunks + 1), r.Int64N(chunks + 1)}
			var changed, count int64
			switch set := r.IntN(2) == 0; {
			case r.IntN(3) == 0:
				for i := c.First; i < c.End; i++ {
					if model[i] {
						count++
					}
				}
				if got := b.Count(c); got != count {
					t.Fatalf("Count(%v) = %d, want %d", c, got, count)
				}
				if b.AnySet(c) != (count > 0) || b.AllSet(c) != (count == c.Len()) {
					t.Fatalf("AnySet or AllSet of %v is wrong with %d set", c, count)
				}
			default:
				for i := c.First; i < c.End; i++ {
					if model[i] != set {
						changed++
					}
					model[i] = set
				}
				got := int64(0)
				if set {
					got = b.Set(c)
				} else {
					got = b.Clear(c)
				}
				if got != changed {
					t.Fatalf("setting %v to %v changed %d bits, want %d", c, set, got, changed)
				}
			}
			checkWhole(t, b, model, r.Int64N(chunks))
		}
	}
}

func checkWhole(t *testing.T, b *Bitmap, model []bool, from int64) {
	t.Helper()
	var bytes, set int64
	nextSet, nextClear := int64(-1), int64(len(model))
	for i, bit := range model {
		c := int64(i)
		if b.Test(c) != bit {
			t.Fatalf("bit %d is %v", i, !bit)
		}
		if bit {
			_, n := b.Bytes(Chunks{c, c + 1})
			bytes, set = bytes+n, set+1
		}
		if c >= from && bit && nextSet < 0 {
			nextSet = c
		}
		if c >= from && !bit && nextClear == int64(len(model)) {
			nextClear = c
		}
	}
	if b.Len() != set || b.SetBytes() != bytes {
		t.Fatalf("%d bits and %d bytes, want %d and %d", b.Len(), b.SetBytes(), set, bytes)
	}
	if got, ok := b.NextSet(from); ok != (nextSet >= 0) || ok && got != nextSet {
		t.Fatalf("NextSet(%d) = %d, %v; want %d", from, got, ok, nextSet)
	}
	if got := b.NextClear(from); got != nextClear {
		t.Fatalf("NextClear(%d) = %d, want %d", from, got, nextClear)
	}
	run := from
	for run < int64(len(model)) && model[run] == model[from] {
		run++
	}
	if got := b.RunEnd(from, int64(len(model))); got != run {
		t.Fatalf("RunEnd(%d) = %d, want %d", from, got, run)
	}
	end := from + (int64(len(model))-from)/2
	want := min(max(nextSet, from), end)
	if nextSet < 0 {
		want = end
	}
	if got := b.NextSetBefore(from, end); got != want {
		t.Fatalf("NextSetBefore(%d, %d) = %d, want %d", from, end, got, want)
	}
}

func TestUnion(t *testing.T) {
	a, _ := New(1<<20, 512)
	b, _ := New(1<<20, 512)
	a.Set(Chunks{0, 100})
	b.Set(Chunks{50, 200})
	a.Union(b)
	if a.Len() != 200 || !a.AllSet(Chunks{0, 200}) {
		t.Fatalf("union has %d bits", a.Len())
	}
}
