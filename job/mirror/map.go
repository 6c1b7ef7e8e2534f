// SPDX-License-Identifier: Apache-2.0

package mirror

import (
	"context"
	"slices"

	"github.com/blkmirror/blkmirror/block/bitmap"
)

// MaxCells is the most cells that a map can have.
const MaxCells = 4096

// What is counted at a time, while guests' writes may wait: so many chunks, and so many cells.
const (
	sliceChunks = 1 << 19
	sliceCells  = 256
)

// Cell says how many chunks of a part of the disk are in which state. Every chunk is in one.
type Cell struct {
	Unscanned int64 // the source was not looked at there yet
	Dirty     int64 // must be copied
	DirtyZero int64 // must be copied, and the target reads as zero there until then
	InFlight  int64 // somebody works on it: the copy, a comparison, or a guest's write to both disks
	Copied    int64 // in step
	Zero      int64 // in step: the target is known to read as zero there, as the source does
}

// Map is the state of a range of the disk.
type Map struct {
	Size        int64 // of the disk, bytes
	Granularity int64 // length of a chunk, bytes
	Off         int64 // where the first cell begins
	CellSize    int64 // length of a cell, bytes: whole chunks; the last cell may be shorter
	Cells       []Cell
}

// Map tells the state of n bytes at off, or of what there is of them, in at most so many cells. It may be called at any time.
//
// On a large disk it counts in slices, and gives way to guests' writes between them: cells are right each for the moment
// in which they were counted.
func (m *Mirror) Map(ctx context.Context, off, n int64, cells int) (Map, error) {
	size := m.planner.d.Size()
	switch {
	case off < 0 || off > size:
		return Map{}, invalid("offset %d is not on the disk, which has %d bytes", off, size)
	case n < 0:
		return Map{}, invalid("a range of %d bytes cannot be", n)
	case cells < 1 || cells > MaxCells:
		return Map{}, invalid("a map has from 1 to %d cells, not %d", MaxCells, cells)
	}
	l := newMapLayout(m.planner.d.Layout, off, min(n, size-off), cells)
	counted := make([]Cell, l.count())
	for first := 0; first < len(counted); {
		if err := ctx.Err(); err != nil {
			return Map{}, err
		}
		m.mu.Lock()
		first = m.planner.countCells(l, counted, first)
		m.mu.Unlock()
	}
	at, _ := l.Bytes(l.chunks)
	return Map{Size: size, Granularity: l.Granularity(), Off: at, CellSize: l.per * l.Granularity(), Cells: counted}, nil
}

// mapLayout cuts a range of chunks into cells.
type mapLayout struct {
	bitmap.Layout
	chunks bitmap.Chunks
	per    int64 // chunks of a cell
}

func newMapLayout(disk bitmap.Layout, off, n int64, cells int) mapLayout {
	c := disk.Outward(off, n)
	return mapLayout{disk, c, max((c.Len()+int64(cells)-1)/int64(cells), 1)}
}

func (l mapLayout) count() int { return int((l.chunks.Len() + l.per - 1) / l.per) }

// cell is the range of chunks of a cell.
func (l mapLayout) cell(i int) bitmap.Chunks {
	first := l.chunks.First + int64(i)*l.per
	return bitmap.Chunks{First: first, End: min(first+l.per, l.chunks.End)}
}

// countCells adds up the next chunks of a map: those of the cells from first on that were not counted, as many as a slice has. It
// returns the first cell that is not complete.
func (p *planner) countCells(l mapLayout, cells []Cell, first int) (next int) {
	part := l.cell(first)
	part.First += cells[first].chunks() // what an earlier slice counted
	part.End = min(part.First+sliceChunks, l.chunks.End)
	if last := first + sliceCells - 1; last < len(cells) {
		part.End = min(part.End, l.cell(last).End)
	}
	each := func(c bitmap.Chunks, f func(*Cell, bitmap.Chunks)) {
		for c.First < c.End {
			i := int((c.First - l.chunks.First) / l.per)
			end := min(c.End, l.cell(i).End)
			f(&cells[i], bitmap.Chunks{First: c.First, End: end})
			c.First = end
		}
	}
	each(part, func(to *Cell, c bitmap.Chunks) { to.add(p.tally(c), 1) })
	for _, c := range p.claimedChunks(part) {
		each(c, func(to *Cell, c bitmap.Chunks) {
			to.add(p.tally(c), -1)
			to.InFlight += c.Len()
		})
	}
	next = int((part.End - l.chunks.First) / l.per)
	if part.End == l.chunks.End {
		next = len(cells)
	}
	return next
}

// tally counts chunks, whoever works on them.
func (p *planner) tally(c bitmap.Chunks) (t Cell) {
	looked := p.d.Inward(0, p.scanned).End
	old := bitmap.Chunks{First: c.First, End: min(c.End, max(looked, c.First))}
	young := bitmap.Chunks{First: old.End, End: c.End}
	dirty, zero, both := bitmap.CountBoth(p.d, p.z, old)
	t.Zero = zero - both
	t.Copied = old.Len() - dirty - t.Zero
	late, _, lateBoth := bitmap.CountBoth(p.d, p.z, young)
	t.Unscanned = young.Len() - late
	t.DirtyZero = both + lateBoth
	t.Dirty = dirty + late - t.DirtyZero
	return t
}

// claimedChunks are the chunks of part that claims touch, in order and each of them once.
func (p *planner) claimedChunks(part bitmap.Chunks) (claimed []bitmap.Chunks) {
	for _, o := range p.claims {
		c := p.d.Outward(o.off, o.end-o.off)
		if c = (bitmap.Chunks{First: max(c.First, part.First), End: min(c.End, part.End)}); !c.Empty() {
			claimed = append(claimed, c)
		}
	}
	slices.SortFunc(claimed, func(a, b bitmap.Chunks) int { return int(a.First - b.First) })
	joined := claimed[:0]
	for _, c := range claimed {
		if last := len(joined) - 1; last >= 0 && c.First <= joined[last].End {
			joined[last].End = max(joined[last].End, c.End)
			continue
		}
		joined = append(joined, c)
	}
	return joined
}

func (c *Cell) add(t Cell, times int64) {
	c.Unscanned += times * t.Unscanned
	c.Dirty += times * t.Dirty
	c.DirtyZero += times * t.DirtyZero
	c.InFlight += times * t.InFlight
	c.Copied += times * t.Copied
	c.Zero += times * t.Zero
}

// chunks is how many were counted.
func (c *Cell) chunks() int64 {
	return c.Unscanned + c.Dirty + c.DirtyZero + c.InFlight + c.Copied + c.Zero
}
