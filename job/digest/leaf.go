// SPDX-License-Identifier: Apache-2.0

package digest

import (
	"sync"

	"lukechampine.com/blake3"
)

// LeafSize is how many bytes of a disk one leaf of its digest has; the last one may have fewer.
const LeafSize = 1 << 20

// Hash is a BLAKE3 digest.
type Hash [32]byte

var (
	zeroes   [LeafSize]byte
	zeroLeaf = sync.OnceValue(func() Hash { return Leaf(zeroes[:]) })
)

// Leaf is the digest of a leaf.
func Leaf(p []byte) Hash { return blake3.Sum256(p) }

// Zeroes is the digest of a leaf of n bytes of zeroes, LeafSize at most.
func Zeroes(n int64) Hash {
	if n == LeafSize {
		return zeroLeaf()
	}
	return Leaf(zeroes[:n])
}

// Leaves makes the digests of the leaves of a part of a disk, which begins where a leaf does and comes in pieces from its start.
type Leaves struct {
	left   int64 // bytes of the part that have not come
	have   int64 // bytes of the leaf that has begun
	holes  bool  // it is all zeroes so far, and none of it is in hasher
	hasher *blake3.Hasher
	done   []Hash
}

// NewLeaves begins a part of n bytes; it ends where a leaf does, or the disk.
func NewLeaves(n int64) *Leaves { return &Leaves{left: n, holes: true} }

// Done are the leaves that are complete.
func (l *Leaves) Done() []Hash { return l.done }

// Data takes the next bytes.
func (l *Leaves) Data(p []byte) {
	for len(p) > 0 {
		n := l.room(int64(len(p)))
		if l.have == 0 && n == l.rest() {
			l.add(n, Leaf(p[:n])) // a leaf in one piece
		} else {
			l.fill()
			_, _ = l.hasher.Write(p[:n]) // never fails
			l.take(n)
		}
		p = p[n:]
	}
}

// Zeroes takes n bytes of zeroes.
func (l *Leaves) Zeroes(n int64) {
	for n > 0 {
		step := l.room(n)
		if !l.holes {
			_, _ = l.hasher.Write(zeroes[:step])
		}
		l.take(step)
		n -= step
	}
}

// rest is how much is missing of the leaf that has begun.
func (l *Leaves) rest() int64 { return min(LeafSize-l.have, l.left) }

func (l *Leaves) room(n int64) int64 { return min(n, l.rest()) }

// fill puts the zeroes that came first into the hasher.
func (l *Leaves) fill() {
	if !l.holes {
		return
	}
	if l.hasher == nil {
		l.hasher = blake3.New(32, nil)
	}
	l.hasher.Reset()
	_, _ = l.hasher.Write(zeroes[:l.have])
	l.holes = false
}

func (l *Leaves) take(n int64) {
	whole := l.rest() == n
	l.have += n
	if !whole {
		l.left -= n
		return
	}
	if l.holes {
		l.add(n, Zeroes(l.have))
		return
	}
	var h Hash
	l.hasher.Sum(h[:0])
	l.add(n, h)
}

// add ends a leaf with its last n bytes.
func (l *Leaves) add(n int64, h Hash) {
	l.left -= n
	l.have, l.holes = 0, true
	l.done = append(l.done, h)
}
