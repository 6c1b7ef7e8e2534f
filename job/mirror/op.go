// SPDX-License-Identifier: Apache-2.0

package mirror

import (
	"time"

	"github.com/blkmirror/blkmirror/block/bitmap"
)

// Mode is the copy mode: what a guest's write does about the target.
type Mode uint8

// The copy modes.
const (
	Background    Mode = iota // it marks the range dirty; the copy takes it from there
	WriteBlocking             // it writes the target, too, before the guest is answered
)

func (m Mode) String() string { return [...]string{"background", "write-blocking"}[m] }

// request is the kind of a guest's write.
type request uint8

const (
	reqData request = iota
	reqZero
	reqTrim
)

// span is a byte range.
type span struct{ off, end int64 }

// op is one piece of work on a byte range: a guest's write, or a copy.
type op struct {
	off, end int64
	request  request
	mode     Mode // the mode that a guest's write began with; it keeps it
	bypass   bool // the planner has nothing to do with it
	verify   bool // a comparison: it writes nothing

	blocked int           // earlier claims that it waits for
	granted chan struct{} // made by the runner for an op that has to wait
	began   time.Time     // of a guest's write, if such are measured
	delay   time.Duration // what the mirror added to a guest's write
	epoch   uint64        // of the planner when the claim was asked for, and then when it was granted

	// Decided when the claim is granted.
	target     span   // a guest's write: the part that goes to the target; may be empty
	parts      []span // zeroes: what of target has to be written; the rest reads as zero already
	durable    bool   // the target was in sync, so that flushes and FUA count there, too
	cleans     bool   // a guest's write: it brings the target something that it lacked before
	leaves     bool   // a guest's write: a part of it was made dirty when the claim was granted
	targetZero bool   // a copy: all its chunks were known to be zero on the target
	zeroed     []span // ranges where zeroes were written or known, to be noted when that succeeded
	written    span   // around what of the target is being written; empty if nothing is
}

func (o *op) overlaps(off, end int64) bool { return o.off < end && off < o.end }

// wroteAll says whether no part of a write of zeroes was skipped.
func (o *op) wroteAll() bool { return len(o.parts) == 1 && o.parts[0] == o.target }

// addZeroed notes a range of zeroes, joined with the one before where they touch.
func (o *op) addZeroed(off, end int64) {
	if last := len(o.zeroed) - 1; last >= 0 && o.zeroed[last].end == off {
		o.zeroed[last].end = end
		return
	}
	o.zeroed = append(o.zeroed, span{off, end})
}

// ---- Guests

// beginGuest takes a guest's write of n bytes at off before the source sees it. It returns false if the write has to wait
// for claims that came before.
func (p *planner) beginGuest(o *op, r request, off, n int64) (granted bool) {
	o.off, o.end, o.request, o.mode, o.bypass = off, off+n, r, p.mode, p.stopped
	o.blocked, o.parts, o.zeroed, o.target, o.durable, o.leaves = 0, o.parts[:0], o.zeroed[:0], span{}, false, false
	o.written, o.delay, o.epoch, o.verify = span{}, 0, p.epoch, false
	if p.silent {
		o.mode = Background
	}
	switch {
	case p.stopped:
	case o.mode == Background:
		p.writers++
		p.verify.enlist(o)
	default:
		p.claim(o)
		if o.blocked > 0 {
			return false
		}
		p.admit(o)
	}
	return true
}

// admit decides, at the moment when a guest's claim is granted, what of the write goes to the target. A dirty chunk that is
// touched in part stays dirty and that part is left to the copy; a dirty chunk that is whole in the write is clean from now
// on; a clean chunk is written through to the byte.
func (p *planner) admit(o *op) {
	o.durable, o.epoch = p.synced(), p.epoch
	n := o.end - o.off
	if p.silent {
		o.leaves = p.d.Set(p.d.Outward(o.off, n)) > 0
		return
	}
	if o.end > p.scanned {
		// The scan has not been here: whatever it found before this write may be out of date when it says so.
		p.d.Set(p.d.Outward(o.off, n))
		return
	}
	touched, whole := p.d.Outward(o.off, n), p.d.Inward(o.off, n)
	if p.whole != nil {
		if p.leavePartial(o, touched, whole); o.leaves && o.request == reqTrim {
			return
		}
	}
	o.target = span{o.off, o.end}
	if whole.Empty() {
		// At most two chunks, both touched in part.
		p.trimEdge(o, touched.First)
		p.trimEdge(o, touched.End-1)
	} else {
		if touched.First < whole.First {
			p.trimEdge(o, touched.First)
		}
		if touched.End > whole.End {
			p.trimEdge(o, touched.End-1)
		}
		if p.d.Clear(whole) > 0 {
			o.cleans = true
			p.cleaning++
		}
	}
	if o.target.off >= o.target.end {
		o.target = span{}
		return
	}
	n = o.target.end - o.target.off
	p.mirroring += n
	switch o.request {
	case reqData:
		p.z.Clear(p.z.Outward(o.target.off, n))
		p.write(o, o.target.off, o.target.end)
	case reqZero:
		o.parts = p.notZero(o, o.target.off, o.target.end)
		o.addZeroed(o.target.off, o.target.end)
	}
}

// leavePartial makes the chunks dirty of which the target would get a part only while it has nothing of the rest, so that the
// copy brings all of them. What becomes of a discarded range is decided piece by piece: it is left to the copy as a whole.
func (p *planner) leavePartial(o *op, touched, whole bitmap.Chunks) {
	if o.request == reqTrim {
		if o.leaves = !p.whole.AllSet(touched); o.leaves {
			p.d.Set(touched)
		}
		return
	}
	for chunk := touched.First; chunk < touched.End; chunk++ {
		if chunk == whole.First {
			chunk = whole.End
		}
		if chunk < touched.End && !p.whole.Test(chunk) {
			o.leaves = p.d.Set(bitmap.Chunks{First: chunk, End: chunk + 1}) > 0 || o.leaves
		}
	}
}

// trimEdge leaves the bytes of a chunk out of the part for the target if the chunk is dirty.
func (p *planner) trimEdge(o *op, chunk int64) {
	if !p.d.Test(chunk) {
		return
	}
	off, n := p.d.Bytes(bitmap.Chunks{First: chunk, End: chunk + 1})
	if off <= o.target.off {
		o.target.off = max(o.target.off, min(off+n, o.target.end))
	} else {
		o.target.end = min(o.target.end, off)
	}
}

// notZero finds the parts of the range that are not known to be zero on the target, and notes that they are about to be
// written.
func (p *planner) notZero(o *op, off, end int64) []span {
	parts := o.parts[:0]
	chunks := p.z.Outward(off, end-off)
	for c := chunks.First; c < chunks.End; {
		run := p.z.RunEnd(c, chunks.End)
		if !p.z.Test(c) {
			from, n := p.z.Bytes(bitmap.Chunks{First: c, End: run})
			part := span{max(from, off), min(from+n, end)}
			p.write(o, part.off, part.end)
			parts = append(parts, part)
		}
		c = run
	}
	return parts
}

// trimZero takes a part of a discarded range that the source reads as zero now: it is like a write of zeroes.
func (p *planner) trimZero(o *op, off, end int64) []span {
	o.addZeroed(off, end)
	return p.notZero(o, off, end)
}

// endGuest takes the results of a guest's write, which the guest gets next. It returns how many bytes count as done, and
// whether there is more to copy than before.
func (p *planner) endGuest(o *op, sourceFailed, targetFailed bool) (done int64, dirtied bool) {
	if o.bypass {
		return 0, false
	}
	n := o.end - o.off
	chunks := p.d.Outward(o.off, n)
	p.verify.changed(o.off, n)
	switch {
	case o.mode == Background:
		p.writers--
		p.verify.discharge(o)
		if o.request == reqZero && !sourceFailed && p.zeroNeedsNothing(chunks) {
			_, done = p.d.Bytes(chunks)
			return done, false
		}
		return 0, p.d.Set(chunks) > 0
	}
	p.wrote(o)
	if o.cleans {
		p.cleaning--
		o.cleans = false
	}
	length := o.target.end - o.target.off
	p.mirroring -= length
	switch {
	case sourceFailed:
		// What the source holds is unknown, and the target was left alone.
		dirtied = p.d.Set(chunks) > 0
	case targetFailed:
		touched := p.d.Outward(o.target.off, length)
		dirtied = p.d.Set(touched) > 0
		p.z.Clear(touched)
	default:
		done = length
		p.noteZeroed(o)
		p.noteWhole(o.target.off, length)
	}
	p.release(o)
	return done, dirtied || o.leaves
}

// zeroNeedsNothing says whether a write of zeroes that the source has just done leaves nothing to do: the target reads as zero
// in every chunk it touched, and nobody may be about to change that.
func (p *planner) zeroNeedsNothing(chunks bitmap.Chunks) bool {
	off, n := p.d.Bytes(chunks)
	return off+n <= p.scanned && p.z.AllSet(chunks) && !p.d.AnySet(chunks) && p.claimedFrom(off, off+n) == nil
}

func (p *planner) noteZeroed(o *op) {
	for _, s := range o.zeroed {
		p.z.Set(p.z.Inward(s.off, s.end-s.off))
	}
}

// noteWhole notes that the target got a range.
func (p *planner) noteWhole(off, n int64) {
	if p.whole != nil {
		p.whole.Set(p.whole.Inward(off, n))
	}
}

// ---- The copy

// found is what nextCopy came to.
type found uint8

const (
	foundWork  found = iota // there is a claim
	foundNone               // nothing is dirty, or all that is is held by others
	foundSlice              // the search is not over; it goes on with the next call
)

// searchSlice is how many chunks one call of nextCopy looks at, so that no guest waits long for the planner.
const searchSlice = 1 << 18

// nextCopy claims the next piece to copy: whole dirty chunks, of at most limit bytes, that nobody holds and that are alike in
// what is known of the target. They are clean from now on. hint is an extent of the source that is believed to be zero; a
// piece inside it may have hintLimit bytes.
func (p *planner) nextCopy(o *op, limit int64, hint span, hintLimit int64) found {
	all := p.d.All().End
	if p.d.Len() == 0 {
		return foundNone
	}
	if p.cursor >= all {
		p.cursor, p.starved, p.wholePass = 0, false, true
	}
	end := min(p.cursor+searchSlice, all)
	chunk := p.d.NextSetBefore(p.cursor, end)
	if chunk == end {
		p.cursor = end
		if end == all && p.starved && p.wholePass {
			return foundNone
		}
		return foundSlice
	}
	off, n := p.d.Bytes(bitmap.Chunks{First: chunk, End: chunk + 1})
	if busy := p.claimedFrom(off, off+n); busy != nil {
		p.starved = true
		p.cursor = max(chunk+1, p.d.Inward(busy.off, busy.end-busy.off).End)
		if p.cursor >= all && p.wholePass {
			return foundNone
		}
		return foundSlice
	}
	if hint.off <= off && off < hint.end {
		limit = max(limit, min(hintLimit, hint.end-off))
	}
	last := min(chunk+max(limit/p.d.Granularity(), 1), all)
	last = p.d.RunEnd(chunk, last)
	last = p.z.RunEnd(chunk, last)
	off, n = p.d.Bytes(bitmap.Chunks{First: chunk, End: last})
	if busy := p.claimedFrom(off, off+n); busy != nil {
		last = p.d.Outward(busy.off, 1).First
		off, n = p.d.Bytes(bitmap.Chunks{First: chunk, End: last})
	}
	chunks := bitmap.Chunks{First: chunk, End: last}
	*o = op{off: off, end: off + n, parts: o.parts[:0], zeroed: o.zeroed[:0], targetZero: p.z.Test(chunk),
		epoch: p.epoch}
	p.d.Clear(chunks)
	p.claims = append(p.claims, o)
	p.copying += n
	p.cursor, p.wholePass = last, false
	return foundWork
}

// giveBack returns the end of a copy's claim from byte from on, the start of a chunk: it is dirty again.
func (p *planner) giveBack(o *op, from int64) {
	old := o.end
	p.d.Set(p.d.Outward(from, old-from))
	p.copying -= old - from
	o.end = from
	for _, later := range p.claims {
		if later != o && later.overlaps(from, old) && !later.overlaps(o.off, o.end) {
			if later.blocked--; later.blocked == 0 {
				p.admit(later)
				p.woken = append(p.woken, later)
			}
		}
	}
	p.cursor = min(p.cursor, p.d.Outward(from, 1).First)
}

// copyData notes that what was read from the source is about to be written to a range of the target.
func (p *planner) copyData(o *op, off, end int64) {
	p.z.Clear(p.z.Outward(off, end-off))
	p.write(o, off, end)
}

// copyZero takes a range that the source reads as zero, and says whether the target has to be written for that.
func (p *planner) copyZero(o *op, off, end int64) (write bool) {
	if o.targetZero {
		return false
	}
	o.addZeroed(off, end)
	p.write(o, off, end)
	return true
}

// endCopy takes the result of a copy.
func (p *planner) endCopy(o *op, sourceFailed, targetFailed bool) {
	p.wrote(o)
	p.verify.changed(o.off, o.end-o.off)
	chunks := p.d.Outward(o.off, o.end-o.off)
	if sourceFailed || targetFailed {
		p.d.Set(chunks)
	}
	if targetFailed {
		p.z.Clear(chunks)
	} else if !sourceFailed {
		p.noteZeroed(o)
		p.noteWhole(o.off, o.end-o.off)
	}
	p.copying -= o.end - o.off
	p.release(o)
}
