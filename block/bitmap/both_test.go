// SPDX-License-Identifier: Apache-2.0

package bitmap

import (
	"math/rand/v2"
	"testing"
)

func TestCountBoth(t *testing.T) {
	const chunks = 1000
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	dice := rand.New(rand.NewPCG(seed, 1))
	a, _ := New(chunks*512, 512)
	b, _ := New(chunks*512, 512)
	for range 200 {
		for _, m := range []*Bitmap{a, b} {
			first := dice.Int64N(chunks)
			c := Chunks{first, first + dice.Int64N(min(chunks-first, 80)+1)}
			if dice.IntN(2) == 0 {
				m.Set(c)
			} else {
				m.Clear(c)
			}
		}
		first := dice.Int64N(chunks)
		c := Chunks{first, first + dice.Int64N(chunks-first+1)}
		var want [3]int64
		for at := c.First; at < c.End; at++ {
			for i, set := range []bool{a.Test(at), b.Test(at), a.Test(at) && b.Test(at)} {
				if set {
					want[i]++
				}
			}
		}
		inA, inB, both := CountBoth(a, b, c)
		if got := [3]int64{inA, inB, both}; got != want {
			t.Fatalf("%v: %d chunks, want %d", c, got, want)
		}
	}
}
