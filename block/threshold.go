// SPDX-License-Identifier: Apache-2.0

package block

// writeThreshold is an offset that an operator wants to know of when it is written beyond.
type writeThreshold struct {
	at   int64
	tell func(exceeded int64)
}

// SetWriteThreshold has tell called, once, by the first write, write of zeroes or effective discard that ends above the offset
// at, before it is carried out; exceeded is by how many bytes. It takes the place of an earlier threshold; 0 takes that away. tell must not wait.
func (n *Node) SetWriteThreshold(at int64, tell func(exceeded int64)) {
	if at == 0 {
		n.threshold.Store(nil)
		return
	}
	n.threshold.Store(&writeThreshold{at, tell})
}

// WriteThreshold is the offset of SetWriteThreshold, 0 if there is none any more.
func (n *Node) WriteThreshold() int64 {
	if t := n.threshold.Load(); t != nil {
		return t.at
	}
	return 0
}

func (n *Node) passThreshold(end int64) {
	t := n.threshold.Load()
	if t != nil && end > t.at && n.threshold.CompareAndSwap(t, nil) {
		t.tell(end - t.at)
	}
}
