// SPDX-License-Identifier: Apache-2.0

package verify

import (
	"encoding/binary"
	"encoding/hex"
	"math/rand/v2"
	"testing"

	"lukechampine.com/blake3"
)

// plainDigest is the digest as the documentation has it, by recursion.
func plainDigest(p []byte) string {
	var node func(p []byte) [32]byte
	node = func(p []byte) [32]byte {
		n := (len(p) + leafSize - 1) / leafSize
		if n <= 1 {
			return blake3.Sum256(p)
		}
		half := 1
		for half*2 < n {
			half *= 2
		}
		left, right := node(p[:half*leafSize]), node(p[half*leafSize:])
		return blake3.Sum256(append(left[:], right[:]...))
	}
	all := binary.LittleEndian.AppendUint64([]byte("blkmirror-disk-1"), uint64(len(p)))
	if len(p) > 0 {
		top := node(p)
		all = append(all, top[:]...)
	}
	h := blake3.Sum256(all)
	return hex.EncodeToString(h[:])
}

// Pieces in any order, zeroes told as runs, make the digest of the documentation.
func TestDigest(t *testing.T) {
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 1))
	for range 12 {
		disk := make([]byte, r.IntN(12)*leafSize+r.IntN(4)*512)
		var pieces []result
		for at := 0; at < len(disk); {
			end := min(at+leafSize, len(disk))
			if zero := r.IntN(2) == 0; zero {
				end = min(at+(1+r.IntN(9))*leafSize, len(disk))
				pieces = append(pieces, result{span: span{int64(at), int64(end)}, zero: true})
			} else {
				disk[at+r.IntN(end-at)] = byte(r.IntN(256))
				leaf := hash(blake3.Sum256(disk[at:end]))
				pieces = append(pieces, result{span: span{int64(at), int64(end)}, leaf: [2]hash{leaf, leaf}})
			}
			at = end
		}
		r.Shuffle(len(pieces), func(i, j int) { pieces[i], pieces[j] = pieces[j], pieces[i] })
		d := &digests{early: map[int64]result{}}
		for _, p := range pieces {
			d.add(p)
		}
		for i := range d.trees {
			if got, want := d.trees[i].sum(int64(len(disk))), plainDigest(disk); got != want {
				t.Fatalf("seed %d: %d bytes: digest %s, want %s", seed, len(disk), got, want)
			}
		}
	}
	var large tree
	large.addZeroes(1 << 60)
	if len(large.stack) != 1 || len(large.holes) != 41 {
		t.Errorf("2^60 zeroes: %d subtrees, %d holes", len(large.stack), len(large.holes))
	}
}
