// SPDX-License-Identifier: Apache-2.0

package verify

import (
	"math/rand/v2"
	"testing"

	"github.com/blkmirror/blkmirror/job/digest"
	"github.com/blkmirror/blkmirror/job/digest/digesttest"
)

// Pieces in any order, zeroes told as runs, make the digest of the documentation.
func TestDigest(t *testing.T) {
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 1))
	for range 12 {
		disk := make([]byte, r.IntN(12)*digest.LeafSize+r.IntN(4)*512)
		var pieces []result
		for at := 0; at < len(disk); {
			end := min(at+digest.LeafSize, len(disk))
			if zero := r.IntN(2) == 0; zero {
				end = min(at+(1+r.IntN(9))*digest.LeafSize, len(disk))
				pieces = append(pieces, result{span: span{int64(at), int64(end)}, zero: true})
			} else {
				disk[at+r.IntN(end-at)] = byte(r.IntN(256))
				leaf := digest.Leaf(disk[at:end])
				pieces = append(pieces, result{span: span{int64(at), int64(end)}, leaf: [2]digest.Hash{leaf, leaf}})
			}
			at = end
		}
		r.Shuffle(len(pieces), func(i, j int) { pieces[i], pieces[j] = pieces[j], pieces[i] })
		d := &digests{early: map[int64]result{}}
		for _, p := range pieces {
			d.add(p)
		}
		for i := range d.trees {
			if got, want := d.trees[i].Sum(int64(len(disk))), digesttest.Plain(disk); got != want {
				t.Fatalf("seed %d: %d bytes: digest %s, want %s", seed, len(disk), got, want)
			}
		}
	}
}
