// SPDX-License-Identifier: Apache-2.0

package mirror

import (
	"slices"

	"github.com/blkmirror/blkmirror/block/bitmap"
)

// verification is what a planner that compares the disks knows of that.
type verification struct {
	todo   *bitmap.Bitmap // V: chunks that are to be compared; none before the pass begins
	mended *bitmap.Bitmap // chunks that were found to differ, and copied again for that

	// loose are guests' writes under way that began in background mode: they hold no claims.
	loose []*op

	begun     bool
	cursor    int64 // chunk at which the comparison goes on
	wholePass bool  // the search began at the start of the disk and found nothing yet
	differing int64 // bytes of sectors that differed
}

func newVerification(p *planner) *verification {
	v := &verification{}
	v.todo, _ = bitmap.New(p.d.Size(), p.d.Granularity())
	v.mended, _ = bitmap.New(p.d.Size(), p.d.Granularity())
	return v
}

// beginVerify begins the pass over the disk.
func (p *planner) beginVerify() {
	p.verify.todo.Set(p.verify.todo.All())
	p.verify.begun = true
}

// unverified is how many bytes are to be compared still.
func (p *planner) unverified() int64 {
	if p.verify == nil {
		return 0
	}
	return p.verify.todo.SetBytes()
}

// enlist notes that a guest's write of background mode begins, and discharge that it is over.
func (v *verification) enlist(o *op) {
	if v != nil {
		v.loose = append(v.loose, o)
	}
}

func (v *verification) discharge(o *op) {
	if v != nil {
		at := slices.Index(v.loose, o)
		v.loose = slices.Delete(v.loose, at, at+1)
	}
}

// looseFrom finds the first write of background mode under way, by position on the disk, that overlaps the range.
func (v *verification) looseFrom(off, end int64) (first *op) {
	for _, o := range v.loose {
		if o.overlaps(off, end) && (first == nil || o.off < first.off) {
			first = o
		}
	}
	return first
}

// busyFrom finds the first piece of work, by position on the disk, that a comparison of the range would meet.
func (p *planner) busyFrom(off, end int64) *op {
	claim, loose := p.claimedFrom(off, end), p.verify.looseFrom(off, end)
	if claim == nil || loose != nil && loose.off < claim.off {
		return loose
	}
	return claim
}

// nextVerify claims the next piece to compare: whole chunks, of at most limit bytes, that are clean and that nobody works on.
// hint is an extent that is believed to be zero on both sides; a piece inside it may have hintLimit bytes.
func (p *planner) nextVerify(o *op, limit int64, hint span, hintLimit int64) found {
	v := p.verify
	if v.todo.Len() == 0 || p.silent {
		return foundNone
	}
	all := p.d.All().End
	if v.cursor >= all {
		nothing := v.wholePass
		v.cursor, v.wholePass = 0, true
		if nothing {
			return foundNone
		}
	}
	end := min(v.cursor+searchSlice, all)
	chunk := v.todo.NextSetBefore(v.cursor, end)
	if chunk == end {
		v.cursor = end
		return foundSlice
	}
	if p.dirty(chunk) {
		v.cursor = p.d.RunEnd(chunk, end)
		return foundSlice
	}
	off, n := p.d.Bytes(bitmap.Chunks{First: chunk, End: chunk + 1})
	if busy := p.busyFrom(off, off+n); busy != nil {
		v.cursor = max(chunk+1, p.d.Inward(busy.off, busy.end-busy.off).End)
		return foundSlice
	}
	if hint.off <= off && off < hint.end {
		limit = max(limit, min(hintLimit, hint.end-off))
	}
	last := min(chunk+max(limit/p.d.Granularity(), 1), all)
	last = v.todo.RunEnd(chunk, last)
	last = p.d.RunEnd(chunk, last)
	off, n = p.d.Bytes(bitmap.Chunks{First: chunk, End: last})
	if busy := p.busyFrom(off, off+n); busy != nil {
		last = p.d.Outward(busy.off, 1).First
		off, n = p.d.Bytes(bitmap.Chunks{First: chunk, End: last})
	}
	*o = op{off: off, end: off + n, parts: o.parts[:0], zeroed: o.zeroed[:0], verify: true, epoch: p.epoch}
	p.claims = append(p.claims, o)
	v.cursor, v.wholePass = last, false
	return foundWork
}

// endVerify takes the result of a comparison: what was compared, from the start of the claim to a byte, and which sectors of
// that differ. It returns those whose difference nothing explains; their chunks are dirty now. One of them may be what
// differed before and was copied since: again is the first such range.
func (p *planner) endVerify(o *op, end int64, differ []span) (told []span, again span) {
	v := p.verify
	v.todo.Clear(v.todo.Inward(o.off, end-o.off))
	for _, s := range differ {
		v.todo.Set(v.todo.Outward(s.off, s.end-s.off))
	}
	for _, s := range differ {
		told = p.unexplained(told, s)
	}
	for _, s := range told {
		chunks := p.d.Outward(s.off, s.end-s.off)
		if again.end == 0 && v.mended.AnySet(chunks) {
			again = s
		}
		p.d.Set(chunks)
		p.z.Clear(chunks)
		v.differing += s.end - s.off
	}
	for _, s := range told {
		v.mended.Set(p.d.Outward(s.off, s.end-s.off))
	}
	return told, again
}

// unexplained appends the parts of a range that differs for which there is no reason known. A guest's write of background mode
// that began or ended meanwhile is one: it is under way still, or made its chunks dirty. A request of a dead connection is
// another: what it may have changed is copied again.
func (p *planner) unexplained(told []span, s span) []span {
	chunks := p.d.Outward(s.off, s.end-s.off)
	for c := chunks.First; c < chunks.End; c++ {
		chunk := bitmap.Chunks{First: c, End: c + 1}
		off, n := p.d.Bytes(chunk)
		switch {
		case p.dirty(c) || p.verify.looseFrom(off, off+n) != nil:
		case p.suspects != nil && p.suspects.Test(c):
			p.d.Set(chunk)
			p.z.Clear(chunk)
		default:
			told = addSpan(told, max(off, s.off), min(off+n, s.end))
		}
	}
	return told
}

// addSpan appends a range to others, joined with the last one where they touch.
func addSpan(spans []span, off, end int64) []span {
	if last := len(spans) - 1; last >= 0 && spans[last].end == off {
		spans[last].end = end
		return spans
	}
	return append(spans, span{off, end})
}
