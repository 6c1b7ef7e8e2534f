// SPDX-License-Identifier: Apache-2.0

package verify

import (
	"encoding/binary"
	"encoding/hex"
	"math/bits"

	"lukechampine.com/blake3"
)

// leafSize is how many bytes of a disk one leaf of its digest has; the last one may have fewer.
const leafSize = pieceSize

// digestName begins what the digest of a disk is the digest of.
const digestName = "blkmirror-disk-1"

// hash is a BLAKE3 digest.
type hash [32]byte

var zeroes [leafSize]byte

// tree gathers the digest of a disk, leaf by leaf from the start (docs/verify.md has the format). A subtree of holes costs as much as
// one node.
type tree struct {
	leaves int64
	stack  []subtree // complete ones, from the left, each of fewer leaves than the one before
	holes  []hash    // by height, of complete subtrees that are all zero
}

// subtree is one of 2^height leaves.
type subtree struct {
	height int
	hash   hash
}

func parent(left, right hash) hash {
	var p [64]byte
	copy(p[:], left[:])
	copy(p[32:], right[:])
	return blake3.Sum256(p[:])
}

// add appends a subtree whose place begins where the tree ends.
func (t *tree) add(s subtree) {
	t.leaves += 1 << s.height
	for n := len(t.stack); n > 0 && t.stack[n-1].height == s.height; n = len(t.stack) {
		s = subtree{s.height + 1, parent(t.stack[n-1].hash, s.hash)}
		t.stack = t.stack[:n-1]
	}
	t.stack = append(t.stack, s)
}

// addZeroes appends n bytes of zeroes; only the end of the disk may be no whole leaf.
func (t *tree) addZeroes(n int64) {
	for count := n / leafSize; count > 0; {
		height := bits.Len64(uint64(count)) - 1
		if t.leaves > 0 {
			height = min(height, bits.TrailingZeros64(uint64(t.leaves)))
		}
		t.add(subtree{height, t.hole(height)})
		count -= 1 << height
	}
	if rest := n % leafSize; rest > 0 {
		t.add(subtree{0, blake3.Sum256(zeroes[:rest])})
	}
}

// hole is a complete subtree that is all zero.
func (t *tree) hole(height int) hash {
	if len(t.holes) == 0 {
		t.holes = append(t.holes, blake3.Sum256(zeroes[:]))
	}
	for len(t.holes) <= height {
		last := t.holes[len(t.holes)-1]
		t.holes = append(t.holes, parent(last, last))
	}
	return t.holes[height]
}

// sum is the digest of a disk of size bytes.
func (t *tree) sum(size int64) string {
	p := binary.LittleEndian.AppendUint64([]byte(digestName), uint64(size))
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

// digests gathers those of both disks from pieces that come in any order.
type digests struct {
	trees [2]tree
	next  int64            // offset of the next piece
	early map[int64]result // pieces behind it, by their offset
}

func (d *digests) add(r result) {
	d.early[r.off] = r
	for {
		r, ok := d.early[d.next]
		if !ok {
			return
		}
		delete(d.early, d.next)
		for i := range d.trees {
			if r.zero {
				d.trees[i].addZeroes(r.end - r.off)
			} else {
				d.trees[i].add(subtree{0, r.leaf[i]})
			}
		}
		d.next = r.end
	}
}
