// SPDX-License-Identifier: Apache-2.0

package mirror

import (
	"fmt"

	"github.com/blkmirror/blkmirror/block/bitmap"
	"github.com/blkmirror/blkmirror/block/invariants"
)

// mostChecked is how many chunks a planner may have for its bitmaps to be compared chunk by chunk.
const mostChecked = 1 << 16

// checkClaims holds the table of claims against its rules before one is released: claims that were granted do not overlap,
// the others wait for as many as are before them, and no chunk has become clean but by a claim that has it whole (I3).
func (p *planner) checkClaims() {
	if !invariants.On {
		return
	}
	for i, o := range p.claims {
		before := 0
		for _, other := range p.claims[:i] {
			if other.overlaps(o.off, o.end) {
				before++
			}
		}
		if before != o.blocked {
			panic(fmt.Sprintf("mirror: the claim of %d..%d waits for %d others, not for %d", o.off, o.end, o.blocked, before))
		}
	}
	if p.d.All().End > mostChecked {
		return
	}
	if p.checked == nil {
		p.checked, _ = bitmap.New(p.d.Size(), p.d.Granularity())
	}
	for chunk := range p.d.All().End {
		if p.checked.Test(chunk) && !p.d.Test(chunk) && !p.claimedWhole(chunk) {
			panic(fmt.Sprintf("mirror: chunk %d became clean by itself", chunk))
		}
	}
	p.checked.Clear(p.checked.All())
	p.checked.Union(p.d)
}

func (p *planner) claimedWhole(chunk int64) bool {
	off, n := p.d.Bytes(bitmap.Chunks{First: chunk, End: chunk + 1})
	for _, o := range p.claims {
		if o.blocked == 0 && o.off <= off && off+n <= o.end {
			return true
		}
	}
	return false
}

// checkCounts compares what is kept with what it counts.
func (p *planner) checkCounts() {
	if !invariants.On {
		return
	}
	var copying, mirroring int64
	for _, o := range p.claims {
		switch {
		case o.verify:
		case o.mode == WriteBlocking:
			mirroring += o.target.end - o.target.off
		default:
			copying += o.end - o.off
		}
	}
	all := p.d.All().End
	half := all / 2 // Count of all chunks does not count
	switch {
	case copying != p.copying:
		panic(fmt.Sprintf("mirror: %d bytes are claimed by the copy, not %d", copying, p.copying))
	case mirroring != p.mirroring:
		panic(fmt.Sprintf("mirror: %d bytes are being mirrored, not %d", mirroring, p.mirroring))
	case p.writers < 0:
		panic("mirror: more background writes ended than began")
	case p.counted > p.scanned || p.scanned > p.d.Size():
		panic(fmt.Sprintf("mirror: scanned %d, counted %d of %d bytes", p.scanned, p.counted, p.d.Size()))
	case p.d.Count(bitmap.Chunks{First: 0, End: half})+p.d.Count(bitmap.Chunks{First: half, End: all}) != p.d.Len():
		panic("mirror: the number of dirty chunks is wrong")
	}
}
