// SPDX-License-Identifier: Apache-2.0

package bitmap

import (
	"bytes"
	"encoding/hex"
	"math"
	"math/rand/v2"
	"testing"
)

func mustNew(t *testing.T, size, granularity int64) *Bitmap {
	t.Helper()
	b, err := New(size, granularity)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// fill sets bits at random.
func fill(r *rand.Rand, b *Bitmap) {
	for range r.IntN(20) {
		first := r.Int64N(b.All().End + 1)
		b.Set(Chunks{first, min(first+r.Int64N(70), b.All().End)})
	}
}

func TestCloneIsACopy(t *testing.T) {
	b := mustNew(t, 100*512, 512)
	b.Set(Chunks{3, 5})
	c := b.Clone()
	b.Set(Chunks{7, 8})
	if c.Len() != 2 || !c.Test(3) || c.Test(7) || c.Size() != b.Size() {
		t.Errorf("the copy has %d bits", c.Len())
	}
}

func TestResizedAndMergeAgainstModel(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	for range 300 {
		size, other := r.Int64N(200_000), r.Int64N(200_000)
		b := mustNew(t, size, 512)
		fill(r, b)
		resized, err := b.Resized(other)
		if err != nil {
			t.Fatal(err)
		}
		var set int64
		for i := range resized.All().End {
			want := i < b.All().End && b.Test(i)
			if resized.Test(i) != want {
				t.Fatalf("%d to %d bytes: bit %d is %v", size, other, i, !want)
			}
			if want {
				set++
			}
		}
		if resized.Len() != set || resized.Size() != other {
			t.Fatalf("%d to %d bytes: %d bits counted, %d set", size, other, resized.Len(), set)
		}

		from := mustNew(t, size, 512<<r.IntN(6))
		into := mustNew(t, size, 512<<r.IntN(6))
		fill(r, from)
		fill(r, into)
		before := into.Clone()
		into.Merge(from)
		set = 0
		for i := range into.All().End {
			want := before.Test(i) || from.AnySet(from.Outward(into.Bytes(Chunks{i, i + 1})))
			if into.Test(i) != want {
				t.Fatalf("merge of granularity %d into %d, %d bytes: bit %d is %v", from.Granularity(), into.Granularity(),
					size, i, !want)
			}
			if want {
				set++
			}
		}
		if into.Len() != set {
			t.Fatalf("merged: %d bits counted, %d set", into.Len(), set)
		}
	}
}

func TestWriteTo(t *testing.T) {
	for _, c := range []struct {
		size int64
		set  Chunks
		want string
	}{
		{0, Chunks{}, "0000000000000000"},
		{512, Chunks{0, 1}, "0100000000000000"},
		{65 * 512, Chunks{8, 9}, "00010000000000000000000000000000"},
		{65 * 512, Chunks{63, 65}, "00000000000000800100000000000000"},
	} {
		b := mustNew(t, c.size, 512)
		b.Set(c.set)
		var out bytes.Buffer
		if n, err := b.WriteTo(&out); err != nil || n != int64(out.Len()) || hex.EncodeToString(out.Bytes()) != c.want {
			t.Errorf("%d bytes, %v: %x, %d, %v", c.size, c.set, out.Bytes(), n, err)
		}
	}
	big := mustNew(t, 100_000*512, 512)
	big.Set(Chunks{70_000, 70_001})
	var out bytes.Buffer
	if _, err := big.WriteTo(&out); err != nil || out.Len() != (100_000+63)/64*8 || out.Bytes()[8750] != 1 {
		t.Errorf("%d bytes written, %v", out.Len(), err)
	}
}

func TestMinGranularity(t *testing.T) {
	for _, c := range []struct{ size, least, memory, want int64 }{
		{0, 512, 1, 512}, {4095, 512, 1, 512}, {1 << 30, 512, 256 << 20, 512}, {1 << 40, 512, 256 << 20, 1024},
		{1 << 40, 65536, 256 << 20, 65536}, {math.MaxInt64, 512, 256 << 20, 1 << 32}, {1 << 62, 512, 256 << 20, 1 << 32},
	} {
		if got := MinGranularity(c.size, c.least, c.memory); got != c.want {
			t.Errorf("MinGranularity(%d, %d, %d) = %d, want %d", c.size, c.least, c.memory, got, c.want)
		}
	}
	if _, err := NewLayout(math.MaxInt64, 512); err == nil {
		t.Error("a size whose chunks cannot be counted was accepted")
	}
}
