// SPDX-License-Identifier: Apache-2.0

package qcow2

import (
	"context"
	"slices"

	"github.com/blkmirror/blkmirror/block"
)

// place is where new clusters lie.
type place struct {
	off, n int64 // bytes, whole clusters
	fresh  bool  // reads as zeroes
}

// alloc takes free clusters that lie next to each other: at least one, and at most n bytes of them.
func (r *refcounts) alloc(ctx context.Context, n int64) (place, error) {
	r.Lock()
	defer r.Unlock()
	r.d.file.Event("cluster_alloc")
	first, count, err := r.findLocked(ctx, n>>r.d.clusterBits)
	if err != nil {
		return place{}, err
	}
	bits := r.d.clusterBits
	p := place{off: first << bits, n: count << bits}
	if p.off+p.n > maxHostOffset {
		return place{}, noSpace("The image has reached the largest size that the format allows")
	}
	if err := r.d.checkOverlap(p.off, p.n); err != nil {
		return place{}, err
	}
	if err := r.coverLocked(ctx, p.off+p.n); err != nil {
		return place{}, err
	}
	p.fresh = first >= r.top && p.off >= r.fresh
	for c := first; c < first+count; c++ {
		if err := r.setLocked(ctx, c, 1); err != nil {
			return place{}, err
		}
	}
	r.hint, r.top = first+count, max(r.top, first+count)
	return p, nil
}

// findLocked looks for up to n free clusters in a row.
func (r *refcounts) findLocked(ctx context.Context, n int64) (first, count int64, err error) {
	for c := r.hint; ; {
		if err := ctx.Err(); err != nil { // a hostile image has much to look through
			return 0, 0, err
		}
		index := int(c / r.perBlock)
		if index >= len(r.table) {
			if err := r.growTableLocked(ctx); err != nil {
				return 0, 0, err
			}
			continue
		}
		b, err := r.blockLocked(ctx, index)
		if err != nil {
			return 0, 0, err
		}
		if b == nil {
			if err := r.newBlockLocked(ctx, index); err != nil {
				return 0, 0, err
			}
			continue
		}
		i := c % r.perBlock
		for i < r.perBlock && r.value(b.data, i) != 0 {
			i++
		}
		first = int64(index)*r.perBlock + i
		if i == r.perBlock {
			c = first
			continue
		}
		most := min(n, r.perBlock-i)
		if first < r.top { // do not mix clusters that are fresh with others
			most = min(most, r.top-first)
		}
		for count = 1; count < most && r.value(b.data, i+count) == 0; {
			count++
		}
		return first, count, nil
	}
}

// newBlockLocked makes a refcount block for clusters that have none, all of which are free. It lies in the first of them.
func (r *refcounts) newBlockLocked(ctx context.Context, index int) error {
	cluster := int64(index) * r.perBlock
	off := cluster << r.d.clusterBits
	if err := r.d.checkOverlap(off, r.d.cluster); err != nil {
		return err
	}
	if err := r.coverLocked(ctx, off+r.d.cluster); err != nil {
		return err
	}
	b, err := r.roomLocked(ctx)
	if err != nil {
		return err
	}
	r.addBlockLocked(index, off, b)
	r.setValue(b.data, 0, 1)
	r.top = max(r.top, cluster+1)
	return nil
}

func (r *refcounts) addBlockLocked(index int, off int64, b *refBlock) {
	clear(b.data)
	r.clock++
	*b = refBlock{index: index, data: b.data, used: r.clock}
	r.blocks[index] = b
	r.markLocked(b)
	r.table[index] = uint64(off)
	r.newBlocks = append(r.newBlocks, index)
	r.d.meta.add(off)
}

// taken are clusters that areaLocked took, and the refcount blocks that it made for them.
type taken struct {
	start, end int64
	blocks     []int
}

// areaLocked takes n clusters in a row, the last ones of what it takes, behind everything that was ever in use. The refcount blocks
// that are missing there lie before them. After an error nothing is taken.
func (r *refcounts) areaLocked(ctx context.Context, n int64) (t taken, err error) {
	if err := r.findTopLocked(ctx); err != nil {
		return t, err
	}
	t.start = r.top
	for c := t.start; c < t.start+n+1; c++ { // refcounts may speak of clusters behind the end of the file
		v, err := r.getLocked(ctx, c)
		if err == nil {
			err = ctx.Err() // a hostile image counts for long
		}
		if err != nil {
			return t, err
		}
		if v != 0 {
			t.start = c + 1
		}
	}
	blocks := int64(0)
	missing := func(end int64) (count int64) {
		for index := t.start / r.perBlock; index*r.perBlock < end; index++ {
			if index >= int64(len(r.table)) || r.table[index]&^511 == 0 {
				count++
			}
		}
		return count
	}
	for {
		needed := missing(t.start + blocks + n)
		if needed == blocks {
			break
		}
		blocks = needed
	}
	t.end = t.start + blocks + n
	if t.end > int64(len(r.table))*r.perBlock {
		return t, errTableFull
	}
	if err := r.d.checkOverlap(t.start<<r.d.clusterBits, (t.end-t.start)<<r.d.clusterBits); err != nil {
		return t, err
	}
	if err := r.coverLocked(ctx, t.end<<r.d.clusterBits); err != nil {
		return t, err
	}
	next := t.start
	for index := t.start / r.perBlock; index*r.perBlock < t.end; index++ {
		if r.table[index]&^511 != 0 {
			continue
		}
		b, err := r.roomLocked(ctx)
		if err != nil {
			r.untakeLocked(ctx, t)
			return t, err
		}
		r.addBlockLocked(int(index), next<<r.d.clusterBits, b)
		t.blocks = append(t.blocks, int(index))
		next++
	}
	for c := t.start; c < t.end; c++ {
		if err := r.setLocked(ctx, c, 1); err != nil {
			r.untakeLocked(ctx, t)
			return t, err
		}
	}
	r.top = t.end
	return t, nil
}

// findTopLocked looks where the clusters end that are in use: the file may be a device, or have been made longer than needed, and then
// there is room in it.
func (r *refcounts) findTopLocked(ctx context.Context) error {
	if r.topFound {
		return nil
	}
	blocks := min(int64(len(r.table)), (r.top+r.perBlock-1)/r.perBlock)
	for index, tries := blocks-1, 0; index >= 0 && tries < 64; index-- {
		b, err := r.blockLocked(ctx, int(index))
		if err != nil {
			return err
		}
		if b == nil {
			continue
		}
		tries++
		for i := r.perBlock - 1; i >= 0; i-- {
			if r.value(b.data, i) != 0 {
				r.lowerTopLocked(index*r.perBlock + i + 1)
				return nil
			}
		}
	}
	r.topFound = true
	return nil
}

// lowerTopLocked notes that nothing is in use from a cluster on. The file may have anything there.
func (r *refcounts) lowerTopLocked(top int64) {
	r.fresh = max(r.fresh, r.top<<r.d.clusterBits)
	r.top = min(r.top, top)
	r.topFound = true
}

// untakeLocked gives back what areaLocked took, to which nothing leads. What cannot be is leaked.
func (r *refcounts) untakeLocked(ctx context.Context, t taken) {
	for _, index := range t.blocks {
		r.d.meta.remove(int64(r.table[index] &^ 511))
		if b := r.blocks[index]; b != nil && b.dirty {
			r.dirty--
		}
		delete(r.blocks, index)
		r.table[index] = 0
		r.newBlocks = slices.DeleteFunc(r.newBlocks, func(other int) bool { return other == index })
	}
	for c := t.start; c < t.end; c++ {
		if b, err := r.blockLocked(ctx, int(c/r.perBlock)); err == nil && b != nil {
			r.setValue(b.data, c%r.perBlock, 0)
			r.markLocked(b)
		}
	}
	r.top = max(r.top, t.end)
	r.lowerTopLocked(t.start) // something may have been written there
}

var errTableFull = noSpace("The refcount table is full")

// allocArea takes n bytes in a row.
func (r *refcounts) allocArea(ctx context.Context, n int64) (off int64, err error) {
	r.Lock()
	defer r.Unlock()
	for {
		t, err := r.areaLocked(ctx, n>>r.d.clusterBits)
		if err == nil {
			return t.end<<r.d.clusterBits - n, nil
		}
		if err != errTableFull {
			return 0, err
		}
		if err := r.growTableLocked(ctx); err != nil {
			return 0, err
		}
	}
}

// growTableLocked makes a larger refcount table. It is durable, with all blocks that it leads to, before the header names it,
// and the old one is freed after that.
func (r *refcounts) growTableLocked(ctx context.Context) error {
	d := r.d
	err := d.mayWrite()
	if err == nil {
		err = d.settleHeader(ctx) // the file must not lead to a table of a try before
	}
	if err != nil {
		return err
	}
	oldTable, oldOff := r.table, r.tableOffset()
	bytes := d.up(int64(len(oldTable)) * 8 * 3 / 2)
	bytes = max(bytes, d.up(int64(len(oldTable))*8+1))
	for { // it must count for itself
		clusters := (r.top + bytes>>d.clusterBits) + (bytes>>d.clusterBits)/r.perBlock + 2
		if bytes/8*r.perBlock >= clusters {
			break
		}
		bytes += d.cluster
	}
	if bytes > maxRefTableBytes {
		return noSpace("The image has reached the largest size that its refcount table allows")
	}
	r.table = append(make([]uint64, 0, bytes/8), oldTable...)[:bytes/8]
	t, err := r.areaLocked(ctx, bytes>>d.clusterBits)
	if err != nil {
		r.table = oldTable
		return err
	}
	off := t.end<<d.clusterBits - bytes
	if err := r.writeTableTo(ctx, off, bytes); err != nil {
		r.untakeLocked(ctx, t)
		r.table = oldTable
		return err
	}
	err = d.changeHeader(ctx, func(h *header) {
		h.refTableOffset, h.refTableClusters = uint64(off), uint32(bytes>>d.clusterBits)
	})
	if err != nil { // the file may lead to the new table, so it keeps its place, and this one leads to the same blocks if it can
		r.shortenLocked(oldTable, t)
		return err
	}
	r.newBlocks = nil
	d.meta.move(refTable, off, bytes)
	d.freeLater([]freeRange{{oldOff, d.up(int64(len(oldTable)) * 8), freedOther}})
	return nil
}

// shortenLocked goes back to a shorter table. Blocks that it does not reach count for clusters that nobody will get.
func (r *refcounts) shortenLocked(table []uint64, t taken) {
	reached := func(index int) bool { return index < len(table) }
	for _, index := range t.blocks {
		if reached(index) {
			continue
		}
		r.d.meta.remove(int64(r.table[index] &^ 511))
		if b := r.blocks[index]; b != nil && b.dirty {
			r.dirty--
		}
		delete(r.blocks, index)
	}
	copy(table, r.table)
	r.table = table
	r.newBlocks = slices.DeleteFunc(r.newBlocks, func(index int) bool { return !reached(index) })
}

// writeTableTo makes the table durable at a place, with the blocks that it leads to.
func (r *refcounts) writeTableTo(ctx context.Context, off, bytes int64) error {
	for _, b := range r.blocks {
		if err := r.writeLocked(ctx, b); err != nil {
			return err
		}
	}
	if err := r.d.file.WriteAt(ctx, encodeTable(r.table, bytes), off, 0); err != nil {
		return err
	}
	return r.d.file.Flush(ctx)
}

// The file grows in steps of a sixteenth of its length within these bounds, because telling the file system is dear.
const (
	minGrowth = 1 << 20
	maxGrowth = 64 << 20
)

// coverLocked makes the file reach to end.
func (r *refcounts) coverLocked(ctx context.Context, end int64) error {
	old := r.d.file.Size()
	if end <= old {
		return nil
	}
	size := max(end, old+min(max(old/16, minGrowth), maxGrowth)) &^ (minGrowth - 1)
	size = max(size, r.d.up(end))
	err := r.d.grow(ctx, r.d.file, size)
	if err != nil && size > r.d.up(end) {
		size = r.d.up(end)
		err = r.d.grow(ctx, r.d.file, size)
	}
	if err != nil {
		return err
	}
	r.grown = true
	e, err := r.d.file.BlockStatus(ctx, old, size-old)
	if err != nil || e.Status&block.StatusZero == 0 || e.Len < size-old {
		r.fresh = size
	}
	return nil
}

// grow makes a file below at least size bytes long.
func (d *Disk) grow(ctx context.Context, file storage, size int64) error {
	d.growing.Lock()
	defer d.growing.Unlock()
	return lengthen(ctx, "The image is full: it", file, size)
}
