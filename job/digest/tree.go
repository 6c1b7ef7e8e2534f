// SPDX-License-Identifier: Apache-2.0

package digest

import (
	"encoding/binary"
	"encoding/hex"
	"math/bits"

	"lukechampine.com/blake3"
)

// name begins what the digest of a disk is the digest of.
const name = "blkmirror-disk-1"

// Tree gathers the digest of a disk, leaf by leaf from the start. A subtree of holes costs as much as one node. The zero Tree has no
// leaves.
type Tree struct {
	leaves int64
	stack  []subtree // complete ones, from the left, each of fewer leaves than the one before
	holes  []Hash    // by height, of complete subtrees that are all zero
}

// subtree is one of 2^height leaves.
type subtree struct {
	height int
	hash   Hash
}

func parent(left, right Hash) Hash {
	var p [64]byte
	copy(p[:], left[:])
	copy(p[32:], right[:])
	return blake3.Sum256(p[:])
}

// Add appends a leaf.
func (t *Tree) Add(leaf Hash) { t.add(subtree{0, leaf}) }

// add appends a subtree whose place begins where the tree ends.
func (t *Tree) add(s subtree) {
	t.leaves += 1 << s.height
	for n := len(t.stack); n > 0 && t.stack[n-1].height == s.height; n = len(t.stack) {
		s = subtree{s.height + 1, parent(t.stack[n-1].hash, s.hash)}
		t.stack = t.stack[:n-1]
	}
	t.stack = append(t.stack, s)
}

// AddZeroes appends n bytes of zeroes; only the end of the disk may be no whole leaf.
func (t *Tree) AddZeroes(n int64) {
	for count := n / LeafSize; count > 0; {
		height := bits.Len64(uint64(count)) - 1
		if t.leaves > 0 {
			height = min(height, bits.TrailingZeros64(uint64(t.leaves)))
		}
		t.add(subtree{height, t.hole(height)})
		count -= 1 << height
	}
	if rest := n % LeafSize; rest > 0 {
		t.Add(Zeroes(rest))
	}
}

// hole is a complete subtree that is all zero.
func (t *Tree) hole(height int) Hash {
	if len(t.holes) == 0 {
		t.holes = append(t.holes, Zeroes(LeafSize))
	}
	for len(t.holes) <= height {
		last := t.holes[len(t.holes)-1]
		t.holes = append(t.holes, parent(last, last))
	}
	return t.holes[height]
}

// Sum is the digest of a disk of size bytes, in hexadecimal digits.
func (t *Tree) Sum(size int64) string {
	p := binary.LittleEndian.AppendUint64([]byte(name), uint64(size))
	if n := len(t.stack); n > 0 {
		top := t.stack[n-1].hash
		for i := n - 2; i >= 0; i-- {
			top = parent(t.stack[i].hash, top)
		}
		p = append(p, top[:]...)
	}
	h := blake3.Sum256(p)
	return hex.EncodeToString(h[:])
}
