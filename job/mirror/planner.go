// SPDX-License-Identifier: Apache-2.0

package mirror

import (
	"fmt"
	"slices"

	"github.com/blkmirror/blkmirror/block/bitmap"
)

// maxChunk is the largest chunk that the planner tracks. A coarser granularity is tracked at this one, so that no claim
// is longer than a piece of the copy.
// Where the bitmaps would take too much memory, chunks are longer.
const maxChunk = 1 << 20

// maxBitmapMemory is how many bytes the bits of one bitmap may take.
const maxBitmapMemory = 256 << 20

// planner knows what of the target is right. It holds no lock, does no I/O, reads no clock and starts no goroutine:
// events go in, decisions come out. The runner calls it under its one mutex.
//
// The letters are those of the invariants in docs/mirror-algorithm.md.
type planner struct {
	d *bitmap.Bitmap // D: chunks that must be copied
	z *bitmap.Bitmap // Z: chunks that are known to read as zero on the target

	// U: regions of the target that were written and not flushed since. Starting a flush moves fresh to flushing.
	fresh, flushing *bitmap.Bitmap

	// suspects are chunks where a request may still be carried out that failed when the connection to the target died. They
	// are compared before completion. Nil if there never was one.
	suspects *bitmap.Bitmap

	// whole are the chunks that the target has in full, for a target that will be given a backing node later: a cluster that is
	// written in part there is filled up with zeroes, which would hide what that node has. Nil for any other target.
	whole *bitmap.Bitmap

	// claims are the byte ranges that somebody works on, in the order in which they were asked for. Those of the copy
	// overlap no other; those of guests may have to wait for earlier ones.
	claims []*op

	mode      Mode
	stopped   bool   // requests pass by: the job is at its end
	silent    bool   // the target gives no answer: guests' writes leave it alone
	epoch     uint64 // how often it fell silent
	scanned   int64  // everything below was scanned; above it every chunk counts as dirty
	cursor    int64  // chunk at which the copy goes on
	writers   int    // guests' writes under way that began in background mode
	cleaning  int    // guests' writes under way that made dirty chunks clean
	copying   int64  // bytes claimed by the copy
	mirroring int64  // bytes that guests are writing to the target
	wholePass bool   // the search began at the start of the disk and found nothing yet
	starved   bool   // the search met dirty chunks that somebody held

	counted int64 // scan: end of the chunks that were counted
	partial bool  // scan: a part of the chunk at counted is allocated
	woken   []*op // claims granted since takeWoken

	verify  *verification  // nil if the disks are not to be compared
	checked *bitmap.Bitmap // D at the last check of invariants; nil without
}

// newPlanner makes a planner for a disk of size bytes. Nothing is dirty, nothing known to be zero.
func newPlanner(size, granularity int64, mode Mode) (*planner, error) {
	return newPlannerOf(size, min(granularity, maxChunk), granularity, mode)
}

// newWholePlanner makes a planner for a target that gets whole clusters only.
func newWholePlanner(size, granularity, cluster int64, mode Mode) (*planner, error) {
	least := max(min(granularity, maxChunk), cluster)
	p, err := newPlannerOf(size, least, max(granularity, cluster), mode)
	if err == nil {
		p.whole, _ = bitmap.New(size, p.d.Granularity())
	}
	return p, err
}

// newPlannerOf makes a planner with chunks of at least so many bytes, and at most granularity.
func newPlannerOf(size, least, granularity int64, mode Mode) (*planner, error) {
	chunk := bitmap.MinGranularity(size, least, maxBitmapMemory)
	switch {
	case chunk > maxGranularity:
		return nil, fmt.Errorf("A disk of %d bytes is too long: its bitmaps would take more than %d MiB with any granularity", size,
			maxBitmapMemory>>20)
	case chunk > granularity:
		return nil, fmt.Errorf("Granularity %d is too fine for a disk of %d bytes: its bitmaps would take more than %d MiB each; "+
			"granularity %d fits", granularity, size, maxBitmapMemory>>20, chunk)
	}
	granularity = chunk
	p := &planner{mode: mode}
	var err error
	if p.d, err = bitmap.New(size, granularity); err != nil {
		return nil, err
	}
	region := max(granularity, 1<<20)
	for size/region > 1<<16 {
		region *= 2
	}
	p.z, _ = bitmap.New(size, granularity)
	p.fresh, _ = bitmap.New(size, region)
	p.flushing, _ = bitmap.New(size, region)
	return p, nil
}

// claim puts o into the table of claims and counts what it has to wait for.
func (p *planner) claim(o *op) {
	for _, other := range p.claims {
		if other.overlaps(o.off, o.end) {
			o.blocked++
		}
	}
	p.claims = append(p.claims, o)
}

// release takes o out of the table and grants those that waited for it last.
func (p *planner) release(o *op) {
	p.checkClaims()
	at := slices.Index(p.claims, o)
	p.claims = slices.Delete(p.claims, at, at+1)
	p.unblock(at, o.off, o.end)
}

// unblock tells the claims from position at on that an earlier claim of a range is gone.
func (p *planner) unblock(at int, off, end int64) {
	for _, later := range p.claims[at:] {
		if later.overlaps(off, end) {
			if later.blocked--; later.blocked == 0 {
				p.admit(later)
				p.woken = append(p.woken, later)
			}
		}
	}
}

// takeWoken returns the claims that were granted after a wait; the runner tells their owners.
func (p *planner) takeWoken() []*op {
	p.checkCounts()
	woken := p.woken
	p.woken = nil
	return woken
}

// claimedFrom finds the first claim, by position on the disk, that overlaps the range.
func (p *planner) claimedFrom(off, end int64) (first *op) {
	for _, o := range p.claims {
		if o.overlaps(off, end) && (first == nil || o.off < first.off) {
			first = o
		}
	}
	return first
}

// written says whether a claim overlaps the range that may change a disk.
func (p *planner) written(off, end int64) bool {
	return slices.ContainsFunc(p.claims, func(o *op) bool { return !o.verify && o.overlaps(off, end) })
}

// dirty says whether a chunk must be copied: marked so, or not looked at yet.
func (p *planner) dirty(chunk int64) bool {
	if p.d.Test(chunk) {
		return true
	}
	off, n := p.d.Bytes(bitmap.Chunks{First: chunk, End: chunk + 1})
	return off+n > p.scanned
}

// left is how many bytes are known to need work: dirty, being copied, being written by guests.
func (p *planner) left() int64 { return p.d.SetBytes() + p.copying + p.mirroring }

// caughtUp says whether nothing is dirty and nothing is being copied.
func (p *planner) caughtUp() bool {
	return p.scanned == p.d.Size() && p.d.Len() == 0 && p.copying == 0
}

// synced says whether the target is what the guest sees, but for writes that the guest has no answer to yet.
func (p *planner) synced() bool {
	return p.mode == WriteBlocking && !p.stopped && !p.silent && p.writers == 0 && p.cleaning == 0 && p.caughtUp()
}

// ---- What the scan of the source finds

// slice is how many chunks are dealt with at once, half a MiB of a bitmap's words, so that no guest waits long for the planner.
const slice = 1 << 22

// markSlice makes the next chunks dirty that were not scanned, and says whether there are more: in the end there is nothing left
// to scan.
func (p *planner) markSlice() (more bool) {
	next := min(p.scanned+slice*p.d.Granularity(), p.d.Size())
	p.d.Set(p.d.Outward(p.scanned, next-p.scanned))
	p.scanned = next
	return next < p.d.Size()
}

// take makes dirty what is set in a bitmap of the source, from one of its chunks on, and returns where it goes on; below all that
// is not the end.
func (p *planner) take(set *bitmap.Bitmap, from int64) (next, all int64) {
	all = set.All().End
	next = min(from+slice, all)
	p.eachSetIn(set, bitmap.Chunks{First: from, End: next}, func(chunks bitmap.Chunks) { p.d.Set(chunks) })
	return next, all
}

// skipScan leaves everything else clean: besides, the target is to get what guests write from now on.
func (p *planner) skipScan() { p.scanned = p.d.Size() }

// zeroSlice notes that the target reads as zero from a chunk on, but for what may have been lost since it did, which is dirty, and
// returns where it goes on. Nothing is scanned yet, so that no guest's write changes the target meanwhile.
func (p *planner) zeroSlice(from int64) (next, all int64) {
	all = p.z.All().End
	next = min(from+slice, all)
	chunks := bitmap.Chunks{First: from, End: next}
	p.z.Set(chunks)
	p.eachSetIn(p.d, chunks, func(chunks bitmap.Chunks) { p.z.Clear(chunks) })
	return next, all
}

// scan takes the next extent of the source, n bytes from where the last one ended: dirty makes the chunks that it touches
// dirty; counts says that those of its chunks that need no copy are work done. It returns how many bytes are. The scan only
// ever adds to D: what a guest made dirty meanwhile stays so.
func (p *planner) scan(n int64, dirty, counts bool) (done int64) {
	if dirty {
		p.d.Set(p.d.Outward(p.scanned, n))
	}
	p.scanned += n
	p.partial = p.partial || counts
	ended := p.d.Inward(p.counted, p.scanned-p.counted)
	if ended.Empty() {
		return 0
	}
	// The first chunk may have been begun by earlier extents, the others lie in this one alone.
	first := bitmap.Chunks{First: ended.First, End: ended.First + 1}
	rest := bitmap.Chunks{First: first.End, End: ended.End}
	if p.partial {
		done += p.cleanBytes(first)
	}
	if counts {
		done += p.cleanBytes(rest)
	}
	off, length := p.d.Bytes(ended)
	p.counted = off + length
	p.partial = counts && p.counted < p.scanned
	return done
}

// cleanBytes is the number of bytes in the chunks of c that are not dirty.
func (p *planner) cleanBytes(c bitmap.Chunks) int64 {
	_, n := p.d.Bytes(c)
	n -= p.d.Count(c) * p.d.Granularity()
	last := p.d.All().End - 1
	if c.End > last && !c.Empty() && p.d.Test(last) {
		_, short := p.d.Bytes(bitmap.Chunks{First: last, End: last + 1})
		n += p.d.Granularity() - short
	}
	return n
}

// ---- Flushes of the target

// beginFlush notes that a flush starts now, and says whether there is anything to flush. Flushes do not overlap.
func (p *planner) beginFlush() (needed bool) {
	p.fresh, p.flushing = p.flushing, p.fresh
	return p.flushing.Len() > 0
}

// endFlush takes the result of the flush. A failed one leaves nothing known of what was written since the last good one:
// the kernel reports a lost page once and calls it clean afterwards.
func (p *planner) endFlush(ok bool) {
	if !ok {
		p.lost()
	}
	p.flushing.Clear(p.flushing.All())
}

// giveUpFlush ends a flush whose outcome nobody waited for. What was written stays unflushed: if that flush fails, the next one
// does.
func (p *planner) giveUpFlush() {
	p.fresh.Union(p.flushing)
	p.flushing.Clear(p.flushing.All())
}

// fallSilent notes that the target does not answer. The requests of what was granted before are given up.
func (p *planner) fallSilent() {
	p.silent = true
	p.epoch++
}

// lost notes that everything that was written to the target since its last good flush may be gone: a flush failed, or the
// target may have restarted.
func (p *planner) lost() {
	p.distrust(p.fresh)
	p.distrust(p.flushing)
	for _, o := range p.claims {
		o.zeroed = o.zeroed[:0] // they may be gone, too, though their write has yet to return
	}
}

// suspect notes that a failed request may still change a range of the target.
func (p *planner) suspect(off, n int64) {
	if p.suspects == nil {
		p.suspects, _ = bitmap.New(p.d.Size(), p.d.Granularity())
	}
	p.suspects.Set(p.suspects.Outward(off, n))
}

// suspected lists the ranges that may change, joined where they touch.
func (p *planner) suspected() (ranges []span) {
	if p.suspects != nil {
		p.eachSet(p.suspects, func(c bitmap.Chunks) {
			off, n := p.d.Bytes(c)
			ranges = append(ranges, span{off, off + n})
		})
	}
	return ranges
}

// distrust makes the chunks of all set regions dirty and not known to be zero.
func (p *planner) distrust(regions *bitmap.Bitmap) {
	p.eachSet(regions, func(chunks bitmap.Chunks) {
		p.d.Set(chunks)
		p.z.Clear(chunks)
	})
}

// eachSet calls f with the chunks that each run of set bits of a bitmap of the disk touches.
func (p *planner) eachSet(b *bitmap.Bitmap, f func(bitmap.Chunks)) {
	p.eachSetIn(b, b.All(), f)
}

// eachSetIn is eachSet for some chunks of b.
func (p *planner) eachSetIn(b *bitmap.Bitmap, c bitmap.Chunks, f func(bitmap.Chunks)) {
	for first := b.NextSetBefore(c.First, c.End); first < c.End; {
		end := b.RunEnd(first, c.End)
		f(p.d.Outward(b.Bytes(bitmap.Chunks{First: first, End: end})))
		first = b.NextSetBefore(end, c.End)
	}
}

// unflushed says whether a part of the range may have been written to the target without a flush since.
func (p *planner) unflushed(off, n int64) bool {
	return p.fresh.AnySet(p.fresh.Outward(off, n)) || p.flushing.AnySet(p.flushing.Outward(off, n))
}

// touch notes that a range of the target is about to be written.
func (p *planner) touch(off, n int64) { p.fresh.Set(p.fresh.Outward(off, n)) }

// write notes that o is about to write a range of the target.
func (p *planner) write(o *op, off, end int64) {
	p.touch(off, end-off)
	if o.written.end == 0 {
		o.written = span{off, end}
	}
	o.written = span{min(o.written.off, off), max(o.written.end, end)}
}

// wrote notes that what o wrote of the target has been written. A flush that began meanwhile may not have covered it.
func (p *planner) wrote(o *op) { p.touch(o.written.off, o.written.end-o.written.off) }
