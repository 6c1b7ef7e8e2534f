// SPDX-License-Identifier: Apache-2.0

package qcow2

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"sync"

	"github.com/blkmirror/blkmirror/block"
)

// refcounts count the references to each cluster of the file: the refcount table, which is in memory as a whole, and a cache of
// refcount blocks. The lock is held while blocks are read and written, because whoever allocates needs one after the other
// anyway, and so that an old block cannot overtake a new one on its way into the file.
//
// A refcount is raised before a reference is made, and lowered after the last one is gone from the file. So a block may be
// written at any time: at worst it counts too much.
type refcounts struct {
	sync.Mutex
	d         *Disk
	order     uint32 // logarithm of the width in bits
	perBlock  int64  // clusters that a block counts for
	table     []uint64
	newBlocks []int // entries of the table that the file does not have yet
	blocks    map[int]*refBlock
	clock     uint64
	unflushed map[int]struct{} // blocks that were written since the last flush that succeeded
	cleaned   uint64           // what clock was when unused blocks were last taken out
	dirty     int              // blocks
	hint      int64            // every cluster before it is in use
	top       int64            // no cluster from it on was ever in use, or it is not in use and counts as such no more than fresh says
	topFound  bool             // top was looked for
	fresh     int64            // what the file has behind this offset is zero where no cluster was ever in use
	opened    int64            // length of the file at first
	grown     bool             // the file is longer than needed
}

// refBlock is a refcount block in memory.
type refBlock struct {
	index int // in the table
	data  []byte
	dirty bool
	used  uint64
}

func (r *refcounts) init(d *Disk, table []uint64) {
	r.d, r.order, r.table = d, d.header.refcountOrder, table
	r.perBlock = d.cluster * 8 >> r.order
	r.blocks, r.unflushed = map[int]*refBlock{}, map[int]struct{}{}
	r.top = d.up(d.file.Size()) >> d.clusterBits
	r.fresh, r.opened = d.up(d.file.Size()), d.file.Size()
}

// value reads entry i of a block.
func (r *refcounts) value(b []byte, i int64) uint64 {
	switch r.order {
	case 6:
		return binary.BigEndian.Uint64(b[i*8:])
	case 5:
		return uint64(binary.BigEndian.Uint32(b[i*4:]))
	case 4:
		return uint64(binary.BigEndian.Uint16(b[i*2:]))
	case 3:
		return uint64(b[i])
	}
	bit := uint32(i << r.order & 7)
	return uint64(b[i<<r.order>>3] >> bit & (1<<(1<<r.order) - 1))
}

func (r *refcounts) setValue(b []byte, i int64, v uint64) {
	switch r.order {
	case 6:
		binary.BigEndian.PutUint64(b[i*8:], v)
	case 5:
		binary.BigEndian.PutUint32(b[i*4:], uint32(v))
	case 4:
		binary.BigEndian.PutUint16(b[i*2:], uint16(v))
	case 3:
		b[i] = byte(v)
	default:
		bit := uint32(i << r.order & 7)
		p := &b[i<<r.order>>3]
		*p = *p&^((1<<(1<<r.order)-1)<<bit) | byte(v)<<bit
	}
}

// most is the highest refcount that the width allows.
func (r *refcounts) most() uint64 { return ^uint64(0) >> (64 - 1<<r.order) }

// blockLocked returns the refcount block of a table entry; nil if there is none.
func (r *refcounts) blockLocked(ctx context.Context, index int) (*refBlock, error) {
	if index >= len(r.table) || r.table[index]&^511 == 0 {
		return nil, nil
	}
	r.clock++
	if b := r.blocks[index]; b != nil {
		b.used = r.clock
		return b, nil
	}
	off := int64(r.table[index] &^ 511)
	if err := r.d.checkTable(off, "refcount block"); err != nil {
		return nil, err
	}
	b, err := r.roomLocked(ctx)
	if err != nil {
		return nil, err
	}
	r.d.file.Event("refblock_load")
	if err := readPadded(ctx, r.d.file, b.data, off); err != nil {
		return nil, err
	}
	b.index, b.used = index, r.clock
	r.blocks[index] = b
	return b, nil
}

// roomLocked returns memory for a block, that of the block unused for longest if there are too many.
func (r *refcounts) roomLocked(ctx context.Context) (*refBlock, error) {
	if len(r.blocks) < r.d.options.maxBlocks {
		return &refBlock{data: make([]byte, r.d.cluster)}, nil
	}
	var oldest *refBlock
	for _, b := range r.blocks {
		if oldest == nil || b.used < oldest.used {
			oldest = b
		}
	}
	if err := r.writeLocked(ctx, oldest); err != nil {
		return nil, err
	}
	delete(r.blocks, oldest.index)
	return oldest, nil
}

func (r *refcounts) writeLocked(ctx context.Context, b *refBlock) error {
	if !b.dirty {
		return nil
	}
	if err := r.d.mayWrite(); err != nil {
		return err
	}
	r.d.file.Event("refblock_update_part")
	if err := r.d.file.WriteAt(ctx, b.data, int64(r.table[b.index]&^511), 0); err != nil {
		return err
	}
	b.dirty = false
	r.dirty--
	r.unflushed[b.index] = struct{}{}
	return nil
}

func (r *refcounts) markLocked(b *refBlock) {
	if !b.dirty {
		b.dirty = true
		r.dirty++
	}
}

// getLocked is the refcount of a cluster.
func (r *refcounts) getLocked(ctx context.Context, cluster int64) (uint64, error) {
	b, err := r.blockLocked(ctx, int(cluster/r.perBlock))
	if err != nil || b == nil {
		return 0, err
	}
	return r.value(b.data, cluster%r.perBlock), nil
}

// setLocked changes the refcount of a cluster that has a block.
func (r *refcounts) setLocked(ctx context.Context, cluster int64, v uint64) error {
	b, err := r.blockLocked(ctx, int(cluster/r.perBlock))
	if err != nil {
		return err
	}
	if b == nil {
		return r.d.corrupted(cluster<<r.d.clusterBits, r.d.cluster, "cluster %d has no refcount", cluster)
	}
	r.setValue(b.data, cluster%r.perBlock, v)
	r.markLocked(b)
	return nil
}

// tableEntry is an entry of the refcount table that the file does not have yet.
type tableEntry struct {
	index int
	value uint64
}

// write writes the dirty blocks, and returns the entries of the table that lead to new ones. They may be written when the
// blocks are durable.
func (r *refcounts) write(ctx context.Context) ([]tableEntry, error) {
	r.Lock()
	defer r.Unlock()
	var entries []tableEntry
	if r.dirty > 0 {
		for _, b := range r.blocks {
			if err := r.writeLocked(ctx, b); err != nil {
				return nil, err
			}
		}
	}
	for _, i := range r.newBlocks {
		entries = append(entries, tableEntry{i, r.table[i]})
	}
	r.newBlocks = nil
	return entries, nil
}

// writeTable writes entries of the refcount table.
func (r *refcounts) writeTable(ctx context.Context, entries []tableEntry) error {
	r.Lock() // the table must not move in the meantime
	defer r.Unlock()
	slices.SortFunc(entries, func(a, b tableEntry) int { return a.index - b.index })
	var b [8]byte
	for _, e := range entries {
		binary.BigEndian.PutUint64(b[:], e.value)
		r.d.file.Event("reftable_update")
		if err := r.d.file.WriteAt(ctx, b[:], r.tableOffset()+int64(e.index)*8, 0); err != nil {
			return err
		}
	}
	return nil
}

// again notes that entries of the table did not get into the file.
func (r *refcounts) again(entries []tableEntry) {
	r.Lock()
	defer r.Unlock()
	for _, e := range entries {
		r.newBlocks = append(r.newBlocks, e.index)
	}
}

func (r *refcounts) tableOffset() int64 {
	r.d.header.Lock()
	defer r.d.header.Unlock()
	return int64(r.d.header.refTableOffset)
}

// hasNewBlocks says whether the table in the file lacks blocks.
func (r *refcounts) hasNewBlocks() bool {
	r.Lock()
	defer r.Unlock()
	return len(r.newBlocks) > 0
}

// lackBlocks says whether there is no refcount block for a part of the file. Nothing should be there, as on a device that is longer
// than the image has become; but a new block would be put there, whatever it is.
func (r *refcounts) lackBlocks() bool {
	r.Lock()
	defer r.Unlock()
	blocks := (r.top + r.perBlock - 1) / r.perBlock
	return blocks > int64(len(r.table)) || slices.ContainsFunc(r.table[:blocks], func(e uint64) bool { return e&^511 == 0 })
}

// pending says whether blocks or entries of the table wait to be written.
func (r *refcounts) pending() bool {
	r.Lock()
	defer r.Unlock()
	return r.dirty > 0 || len(r.newBlocks) > 0
}

// lower takes away one reference to each cluster of the ranges. Clusters that nobody refers to any more are not free yet:
// they are the last, for release. After an error, rest is what was not dealt with.
func (r *refcounts) lower(ctx context.Context, ranges []freeRange) (last, rest []freeRange, err error) {
	r.Lock()
	defer r.Unlock()
	rest, err = r.eachLocked(ctx, ranges, func(b *refBlock, cluster int64, v uint64, w why) error {
		off := cluster << r.d.clusterBits
		switch v {
		case 0:
			return r.d.corrupted(off, r.d.cluster, "the refcount of the cluster at %#x is too low", off)
		case 1:
			last = addRange(last, off, r.d.cluster, w)
		default:
			r.setValue(b.data, cluster%r.perBlock, v-1)
			r.markLocked(b)
		}
		return nil
	})
	return last, rest, err
}

// release makes clusters with one reference free. After an error, rest is what was not dealt with.
func (r *refcounts) release(ctx context.Context, ranges []freeRange) (rest []freeRange, err error) {
	r.Lock()
	defer r.Unlock()
	return r.releaseLocked(ctx, ranges)
}

func (r *refcounts) releaseLocked(ctx context.Context, ranges []freeRange) (rest []freeRange, err error) {
	return r.eachLocked(ctx, ranges, func(b *refBlock, cluster int64, v uint64, _ why) error {
		off := cluster << r.d.clusterBits
		if v != 1 {
			return r.d.corrupted(off, r.d.cluster, "the refcount of the cluster at %#x is %d, not 1", off, v)
		}
		r.setValue(b.data, cluster%r.perBlock, 0)
		r.markLocked(b)
		r.hint = min(r.hint, cluster)
		r.d.meta.remove(off)
		return nil
	})
}

// eachLocked calls f for each cluster of the ranges, with its refcount and the block where that stands, until there is an error.
func (r *refcounts) eachLocked(ctx context.Context, ranges []freeRange, f func(b *refBlock, cluster int64, v uint64, w why) error) (
	rest []freeRange, err error) {
	for i, in := range ranges {
		for done := int64(0); done < in.n; done += r.d.cluster {
			cluster := (in.off + done) >> r.d.clusterBits
			b, err := r.blockLocked(ctx, int(cluster/r.perBlock))
			switch {
			case err != nil:
			case b == nil:
				err = r.d.corrupted(cluster<<r.d.clusterBits, r.d.cluster, "cluster %d has no refcount", cluster)
			default:
				err = f(b, cluster, r.value(b.data, cluster%r.perBlock), in.why)
			}
			if err != nil {
				rest = append(rest, freeRange{in.off + done, in.n - done, in.why})
				return append(rest, ranges[i+1:]...), err
			}
		}
	}
	return nil, nil
}

// noSpace is the error for a file that cannot grow.
func noSpace(format string, args ...any) error {
	return &block.Error{Kind: block.KindNoSpace, Op: block.OpGraph, Err: fmt.Errorf(format, args...)}
}
