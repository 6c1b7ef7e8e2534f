// SPDX-License-Identifier: Apache-2.0

package digest

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/blkmirror/blkmirror/job/digest/digesttest"
)

// Leaves that come in pieces of any length, data and zeroes, are those of the documentation.
func TestLeaves(t *testing.T) {
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 1))
	for range 20 {
		disk := make([]byte, r.IntN(5)*LeafSize+r.IntN(4)*512)
		l := NewLeaves(int64(len(disk)))
		for at := 0; at < len(disk); {
			end := min(at+1+r.IntN([]int{512, 300000, 3 * LeafSize}[r.IntN(3)]), len(disk))
			if r.IntN(2) == 0 {
				l.Zeroes(int64(end - at))
			} else {
				for i := at; i < end; i += 1 + r.IntN(5000) {
					disk[i] = byte(r.IntN(256))
				}
				l.Data(disk[at:end])
			}
			at = end
		}
		var tree Tree
		for _, leaf := range l.Done() {
			tree.Add(leaf)
		}
		if got, want := tree.Sum(int64(len(disk))), digesttest.Plain(disk); got != want {
			t.Fatalf("seed %d: %d bytes: digest %s, want %s", seed, len(disk), got, want)
		}
	}
}

// What has come of a part that is given up are whole leaves.
func TestLeavesCut(t *testing.T) {
	l := NewLeaves(3 * LeafSize)
	l.Zeroes(LeafSize + 5)
	if !slices.Equal(l.Done(), []Hash{Zeroes(LeafSize)}) {
		t.Errorf("%d leaves", len(l.Done()))
	}
}

func TestHoles(t *testing.T) {
	var large Tree
	large.AddZeroes(1 << 60)
	if len(large.stack) != 1 || len(large.holes) != 41 {
		t.Errorf("2^60 zeroes: %d subtrees, %d holes", len(large.stack), len(large.holes))
	}
}
