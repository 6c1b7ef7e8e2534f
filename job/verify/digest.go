// SPDX-License-Identifier: Apache-2.0

package verify

import "github.com/blkmirror/blkmirror/job/digest"

// digests gathers those of both disks from pieces that come in any order.
type digests struct {
	trees [2]digest.Tree
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
				d.trees[i].AddZeroes(r.end - r.off)
			} else {
				d.trees[i].Add(r.leaf[i])
			}
		}
		d.next = r.end
	}
}
