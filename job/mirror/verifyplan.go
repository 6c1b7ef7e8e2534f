// SPDX-License-Identifier: Apache-2.0

package mirror

import (
	"slices"

	"github.com/blkmirror/blkmirror/block/bitmap"
	"github.com/blkmirror/blkmirror/job/digest"
	"github.com/blkmirror/blkmirror/job/mirror/intent"
)

// verification is what a planner knows of comparing the disks. Any mirror that copies all of its source has one, since it may be
// asked to compare at any time.
type verification struct {
	pass   uint64         // how often a pass over the disk has begun
	todo   *bitmap.Bitmap // V: pieces that the pass has to compare still
	mended *bitmap.Bitmap // chunks that were found to differ in this pass, and copied again for that

	// loose are guests' writes under way that began in background mode: they hold no claims.
	loose []*op

	cursor    int64 // piece at which the comparison goes on
	wholePass bool  // the search began at the start of the disk and found nothing yet
	differing int64 // bytes of sectors that differed in this pass

	// With digests, pieces are the leaves of the disk's digest.
	digests bool
	leaves  []digest.Hash  // of both disks, as they were when they were found equal there
	stale   *bitmap.Bitmap // S: leaves that may be others by now
	seeking bool           // they are compared, too: the job is to complete
}

// begun says whether there is a pass, or was one.
func (v *verification) begun() bool { return v != nil && v.pass > 0 }

// resumeVerify goes on with a pass.
func (p *planner) resumeVerify(pass *intent.Pass) {
	p.beginVerify()
	v := p.verify
	v.pass, v.differing = pass.Number, pass.Differing
	v.todo.Clear(v.todo.All())
	p.eachSet(pass.Left, func(chunks bitmap.Chunks) { v.todo.Set(chunks) })
}

// pass is how far the pass is. What is left is taken a slice at a time, so that no guest waits for all of a large disk: it may be older
// in one place than in another, as all of it is once it is recorded.
func (m *Mirror) pass() (pass intent.Pass, begun bool) {
	var bits []byte
	for chunk, end := int64(0), int64(1); chunk < end; chunk += sliceChunks {
		m.mu.Lock()
		v := m.planner.verify
		if !v.begun() {
			m.mu.Unlock()
			return pass, false
		}
		if pass.Left == nil || pass.Number != v.pass { // the first slice, or another pass has begun
			pass.Left, _ = bitmap.New(v.todo.Size(), v.todo.Granularity()) // as that was made
			pass.Number, chunk, end = v.pass, 0, v.todo.All().End
		}
		pass.Differing = v.differing
		bits = v.todo.AppendBytes(bits[:0], chunk, int(min(sliceChunks, end-chunk)+7)/8)
		m.mu.Unlock()
		pass.Left.MergeBytes(chunk, bits)
	}
	return pass, true
}

// beginVerify begins a pass over the disk.
func (p *planner) beginVerify() {
	v := p.verify
	if v.todo == nil {
		v.todo, _ = bitmap.New(p.d.Size(), p.d.Granularity())
		v.mended, _ = bitmap.New(p.d.Size(), p.d.Granularity())
		if v.digests {
			v.todo, _ = bitmap.New(p.d.Size(), digest.LeafSize)
			v.stale, _ = bitmap.New(p.d.Size(), digest.LeafSize)
			v.leaves = make([]digest.Hash, v.stale.All().End)
		}
	}
	v.pass, v.differing = v.pass+1, 0
	v.mended.Clear(v.mended.All())
	v.todo.Set(v.todo.All())
	if v.stale != nil {
		v.stale.Set(v.stale.All())
	}
}

// unverified is how many bytes the pass has to compare still.
func (p *planner) unverified() int64 {
	if !p.verify.begun() {
		return 0
	}
	return p.verify.todo.SetBytes()
}

// staleBytes is how many bytes have to be compared before the digest of the disks is known, if it is wanted now.
func (p *planner) staleBytes() int64 {
	if p.verify == nil || !p.verify.seeking {
		return 0
	}
	return p.verify.stale.SetBytes()
}

// wanted are the pieces that are to be compared now; nil if there are none.
func (v *verification) wanted() *bitmap.Bitmap {
	switch {
	case !v.begun():
	case v.seeking && v.stale.Len() > 0:
		return v.stale
	case v.todo.Len() > 0:
		return v.todo
	}
	return nil
}

// changed notes that a range of either disk was written.
func (v *verification) changed(off, n int64) {
	if v != nil && v.stale != nil {
		v.stale.Set(v.stale.Outward(off, n))
	}
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

// nextVerify claims what is to be compared next: whole pieces, of at most limit bytes if that is one, that are clean and that nobody
// works on. hint is an extent that is believed to be zero on both sides; a claim inside it may have hintLimit bytes.
func (p *planner) nextVerify(o *op, limit int64, hint span, hintLimit int64) found {
	v := p.verify
	set := v.wanted()
	if set == nil || p.silent {
		return foundNone
	}
	all, piece := set.All().End, set.Granularity()
	if v.cursor >= all {
		nothing := v.wholePass
		v.cursor, v.wholePass = 0, true
		if nothing {
			return foundNone
		}
	}
	end := min(v.cursor+searchSlice, all)
	first := set.NextSetBefore(v.cursor, end)
	if first == end {
		v.cursor = end
		return foundSlice
	}
	off, n := set.Bytes(bitmap.Chunks{First: first, End: first + 1})
	if chunks := p.d.Outward(off, n); p.d.AnySet(chunks) || off+n > p.scanned {
		last := chunks.End - 1
		clean := p.d.RunEnd(last, min(last+searchSlice, p.d.All().End)) * p.d.Granularity()
		if v.cursor = first + 1; p.d.Test(last) {
			v.cursor = max(first+1, clean/piece)
		}
		return foundSlice
	}
	if busy := p.busyFrom(off, off+n); busy != nil {
		v.cursor = max(first+1, set.Inward(busy.off, busy.end-busy.off).End)
		return foundSlice
	}
	if hint.off <= off && off < hint.end {
		limit = max(limit, min(hintLimit, hint.end-off))
	}
	last := min(first+max(limit/piece, 1), all)
	last = set.RunEnd(first, last)
	off, n = set.Bytes(bitmap.Chunks{First: first, End: last})
	chunks := p.d.Outward(off, n)
	if dirty := p.d.NextSetBefore(chunks.First, chunks.End); dirty < chunks.End {
		last = dirty * p.d.Granularity() / piece
		off, n = set.Bytes(bitmap.Chunks{First: first, End: last})
	}
	if busy := p.busyFrom(off, off+n); busy != nil {
		last = busy.off / piece
		off, n = set.Bytes(bitmap.Chunks{First: first, End: last})
	}
	*o = op{off: off, end: off + n, parts: o.parts[:0], zeroed: o.zeroed[:0], verify: true, epoch: p.epoch}
	p.claims = append(p.claims, o)
	v.cursor, v.wholePass = last, false
	return foundWork
}

// endVerify takes the result of a comparison: what was compared, from the start of the claim to a byte, and which sectors of
// that differ; with digests also the leaves in it. It returns the sectors whose difference nothing explains; their chunks are dirty
// now. One of them may be what differed before and was copied since: again is the first such range.
func (p *planner) endVerify(o *op, end int64, differ []span, leaves []digest.Hash) (told []span, again span) {
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
	// A leaf that differs is dirty or being written, and so are others by now, perhaps: the end of that makes them stale again.
	if first := o.off / digest.LeafSize; len(leaves) > 0 {
		copy(v.leaves[first:], leaves)
		v.stale.Clear(bitmap.Chunks{First: first, End: first + int64(len(leaves))})
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
