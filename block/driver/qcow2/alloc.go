// SPDX-License-Identifier: Apache-2.0

package qcow2

import (
	"context"

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

// areaLocked takes n clusters in a row behind everything that was ever in use. The refcount blocks that are missing there lie
// before them.
func (r *refcounts) areaLocked(ctx context.Context, n int64) (off int64, err error) {
	start := r.top
	for c := start; c < start+n+1; c++ { // refcounts may speak of clusters behind the end of the file
		v, err := r.getLocked(ctx, c)
		if err != nil {
			return 0, err
		}
		if v != 0 {
			start = c + 1
		}
	}
	blocks := int64(0)
	missing := func(end int64) (count int64) {
		for index := start / r.perBlock; index*r.perBlock < end; index++ {
			if index >= int64(len(r.table)) || r.table[index]&^511 == 0 {
				count++
			}
		}
		return count
	}
	for {
		needed := missing(start + blocks + n)
		if needed == blocks {
			break
		}
		blocks = needed
	}
	end := start + blocks + n
	if end > int64(len(r.table))*r.perBlock {
		return 0, errTableFull
	}
	if err := r.d.checkOverlap(start<<r.d.clusterBits, (end-start)<<r.d.clusterBits); err != nil {
		return 0, err
	}
	if err := r.coverLocked(ctx, end<<r.d.clusterBits); err != nil {
		return 0, err
	}
	next := start
	for index := start / r.perBlock; index*r.perBlock < end; index++ {
		if r.table[index]&^511 != 0 {
			continue
		}
		b, err := r.roomLocked(ctx)
		if err != nil {
			return 0, err
		}
		r.addBlockLocked(int(index), next<<r.d.clusterBits, b)
		next++
	}
	for c := start; c < end; c++ {
		if err := r.setLocked(ctx, c, 1); err != nil {
			return 0, err
		}
	}
	r.top = end
	return (start + blocks) << r.d.clusterBits, nil
}

var errTableFull = noSpace("The refcount table is full")

// allocArea takes n bytes in a row.
func (r *refcounts) allocArea(ctx context.Context, n int64) (off int64, err error) {
	r.Lock()
	defer r.Unlock()
	for {
		off, err = r.areaLocked(ctx, n>>r.d.clusterBits)
		if err != errTableFull {
			return off, err
		}
		if err := r.growTableLocked(ctx); err != nil {
			return 0, err
		}
	}
}

// growTableLocked makes a larger refcount table. It is durable, with all blocks that it leads to, before the header names it,
// and the old one is free when the header is durable.
func (r *refcounts) growTableLocked(ctx context.Context) error {
	d := r.d
	if err := d.mayWrite(); err != nil {
		return err
	}
	oldTable, oldOff := r.table, r.tableOffset()
	oldNew := append([]int(nil), r.newBlocks...)
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
	off, err := r.areaLocked(ctx, bytes>>d.clusterBits)
	if err == nil {
		err = r.switchTableLocked(ctx, off, bytes)
	}
	if err != nil {
		for index := range r.blocks { // what the old table does not reach
			if index >= len(oldTable) {
				if r.blocks[index].dirty {
					r.dirty--
				}
				delete(r.blocks, index)
			}
		}
		r.table, r.newBlocks = oldTable, oldNew
		return err
	}
	d.meta.move(refTable, off, bytes)
	return r.releaseLocked(ctx, []freeRange{{off: oldOff, n: d.up(int64(len(oldTable)) * 8)}})
}

func (r *refcounts) switchTableLocked(ctx context.Context, off, bytes int64) error {
	for _, b := range r.blocks {
		if err := r.writeLocked(ctx, b); err != nil {
			return err
		}
	}
	if err := r.d.file.WriteAt(ctx, encodeTable(r.table, bytes), off, 0); err != nil {
		return err
	}
	if err := r.d.file.Flush(ctx); err != nil {
		return err
	}
	err := r.d.changeHeader(ctx, func(h *header) {
		h.refTableOffset, h.refTableClusters = uint64(off), uint32(bytes>>r.d.clusterBits)
	})
	if err == nil {
		r.newBlocks = nil
	}
	return err
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
	if size <= file.Size() {
		return nil
	}
	err := file.Resize(ctx, size)
	if block.KindOf(err) == block.KindNotSupported && err != nil {
		return noSpace("The image is full: it needs %d bytes, and its file of %d bytes cannot grow", size, file.Size())
	}
	return err
}
