// SPDX-License-Identifier: Apache-2.0

package qcow2

import (
	"context"
	"encoding/binary"
	"sync"
	"sync/atomic"
)

// commits bring what changed in memory into the file, one commit at a time, in an order that leaves at most clusters that count
// as used and are not, whatever the host loses of the writes since the last flush:
//
//  1. refcounts
//  2. flush: these, new L2 tables as they were made, and all guest data that was written before the commit began
//  3. entries of the refcount table that lead to new blocks, and another flush, if there are any
//  4. L2 tables and the L1 table
//  5. flush
//
// What is written in 4 is a copy from the beginning of the commit, so it refers to nothing younger than the flush in 2. Only after
// 5 are clusters given up to which 4 took away the references.
type commits struct {
	sync.Mutex // held during a commit
	started    atomic.Int64
	succeeded  int64 // number of the last commit that did

	parts   []part
	scratch []byte // copies that the parts lie in

	unreferenced []freeRange // no longer referred to in the file; requests may still be using them
	aging        []freeRange // the same, and every request that began since does not know them
	last         []freeRange // the same, but their refcount, which is one
}

// part is a copy of what was dirty of a slice.
type part struct {
	s      *slice
	lo, hi int
	at     int // in scratch
}

// change is what one commit brings into the file.
type change struct {
	parts []part
	l1    []l1Part
	freed freed
}

// l1Part is a copy of a sector of the L1 table.
type l1Part struct {
	index int // of its first entry
	data  [sectorSize]byte
}

// Flush makes everything durable that was written before the call.
func (d *Disk) Flush(ctx context.Context) error {
	if d.options.readOnly {
		return nil
	}
	return d.sync(ctx)
}

// sync runs a commit that begins after the call, or waits for one.
func (d *Disk) sync(ctx context.Context) error {
	c := &d.commits
	arrived := c.started.Load()
	c.Lock()
	defer c.Unlock()
	if c.succeeded > arrived {
		return nil
	}
	if err := d.commit(ctx, !d.options.lazy); err != nil {
		return err
	}
	_ = d.reclaim(ctx) // everything is durable; what was not freed waits for the next commit, and Settle tells of it
	return nil
}

// commit writes what is dirty and flushes. counts says whether refcounts are written too: with lazy refcounts the image is marked
// as dirty, so that they are counted anew after a crash.
func (d *Disk) commit(ctx context.Context, counts bool) error {
	number := d.commits.started.Add(1)
	if d.corrupt.Load() != nil { // no metadata is written any more
		if d.dirty() {
			return d.mayWrite()
		}
		return d.flushAll(ctx)
	}
	if err := d.settleHeader(ctx); err != nil {
		return err
	}
	if err := d.rewriteLost(ctx); err != nil {
		return err
	}
	w := d.takeDirty()
	err := d.write123(ctx, counts)
	if err == nil {
		err = d.write45(ctx, &w)
	}
	d.written(&w, err != nil)
	if err != nil {
		return err
	}
	c := &d.commits
	c.succeeded = number
	for _, f := range w.freed.ranges {
		c.unreferenced = addRange(c.unreferenced, f.off, f.n, f.why)
	}
	return nil
}

// takeDirty copies what is dirty, and calls it clean.
func (d *Disk) takeDirty() change {
	m, c := &d.maps, &d.commits
	m.Lock()
	defer m.Unlock()
	w := change{parts: c.parts[:0], freed: m.freed}
	m.freed = freed{}
	c.scratch = c.scratch[:0]
	for _, s := range m.dirty {
		w.parts = append(w.parts, part{s, s.lo, s.hi, len(c.scratch)})
		c.scratch = append(c.scratch, s.data[s.lo:s.hi]...)
		s.lo, s.hi, s.writing = 0, 0, true
	}
	clear(m.dirty)
	m.dirty = m.dirty[:0]
	c.parts = w.parts
	const perSector = sectorSize / 8
	sectors := map[int]struct{}{}
	for i := range m.dirtyL1 {
		sectors[i/perSector] = struct{}{}
	}
	for number := range sectors {
		p := l1Part{index: number * perSector}
		for i := range perSector {
			if p.index+i < len(m.l1) {
				binary.BigEndian.PutUint64(p.data[i*8:], m.l1[p.index+i])
			}
		}
		w.l1 = append(w.l1, p)
	}
	clear(m.dirtyL1)
	return w
}

// written ends a commit. What failed is dirty again.
func (d *Disk) written(w *change, failed bool) {
	m := &d.maps
	m.Lock()
	defer m.Unlock()
	for _, p := range w.parts {
		p.s.writing = false
		if failed {
			m.markLocked(p.s, p.lo, p.hi)
		}
	}
	clear(w.parts)
	if !failed {
		return
	}
	for _, p := range w.l1 {
		m.dirtyL1[p.index] = struct{}{}
	}
	for _, f := range w.freed.ranges {
		m.freed.add(f.off, f.n, f.why)
	}
}

// write123 does the steps 1 to 3.
func (d *Disk) write123(ctx context.Context, counts bool) error {
	var entries []tableEntry
	if counts || d.refs.hasNewBlocks() { // a recount finds blocks by the table
		var err error
		if entries, err = d.refs.write(ctx); err != nil {
			return err
		}
	}
	before := d.takeUnflushed()
	err := d.flushAll(ctx)
	if err != nil {
		d.putUnflushed(before)
	}
	if len(entries) > 0 {
		if err != nil {
			d.refs.again(entries)
			return err
		}
		if err = d.refs.writeTable(ctx, entries); err == nil {
			err = d.file.Flush(ctx)
		}
		if err != nil {
			d.refs.again(entries)
		}
	}
	return err
}

// write45 does the steps 4 and 5.
func (d *Disk) write45(ctx context.Context, w *change) error {
	if len(w.parts) == 0 && len(w.l1) == 0 {
		return nil
	}
	for _, p := range w.parts {
		d.file.Event("l2_update")
		if err := d.file.WriteAt(ctx, d.commits.scratch[p.at:p.at+p.hi-p.lo], p.s.off+int64(p.lo), 0); err != nil {
			return err
		}
	}
	d.header.Lock()
	l1 := int64(d.header.l1Offset)
	d.header.Unlock()
	for _, p := range w.l1 {
		d.file.Event("l1_update")
		if err := d.file.WriteAt(ctx, p.data[:], l1+int64(p.index)*8, 0); err != nil {
			return err
		}
	}
	return d.file.Flush(ctx)
}

// flushAll makes all writes durable that returned.
func (d *Disk) flushAll(ctx context.Context) error {
	d.file.Event("flush_to_disk")
	if d.external {
		if err := d.data.Flush(ctx); err != nil {
			return err
		}
	}
	return d.file.Flush(ctx)
}

// Settle brings the image to rest: everything is in the file, clusters that were freed are free, and the image is not marked as
// dirty. No request is under way.
func (d *Disk) Settle(ctx context.Context) error {
	if d.options.readOnly || !d.ready.done.Load() {
		return nil
	}
	if d.corrupt.Load() != nil {
		return d.flushAll(ctx)
	}
	c := &d.commits
	c.Lock()
	defer c.Unlock()
	for range 4 { // what the first frees is in the file after the second
		if err := d.commit(ctx, true); err != nil {
			return err
		}
		if err := d.reclaim(ctx); err != nil {
			return err
		}
		if !d.refs.pending() && !c.waiting() && !d.dirty() {
			break
		}
	}
	if err := d.trim(ctx); err != nil {
		return err
	}
	return d.markClean(ctx)
}

// trim gives back what the file grew in advance.
func (d *Disk) trim(ctx context.Context) error {
	d.refs.Lock()
	defer d.refs.Unlock()
	end := max(d.refs.top<<d.clusterBits, d.refs.opened)
	if d.refs.grown && end < d.file.Size() {
		if err := d.file.Resize(ctx, end); err != nil {
			return err
		}
	}
	d.refs.grown = false
	return nil
}

// Close brings the image to rest if that has not been done.
func (d *Disk) Close() error {
	d.cleaner.close()
	if d.maps.slices == nil { // was not opened
		return nil
	}
	if !d.restless() {
		return nil
	}
	return d.Settle(context.Background())
}

// restless says whether Settle has something to do.
func (d *Disk) restless() bool {
	if d.options.readOnly || !d.ready.done.Load() || d.corrupt.Load() != nil {
		return false
	}
	c := &d.commits
	c.Lock()
	freed := c.waiting()
	c.Unlock()
	d.header.Lock()
	marked := d.header.incompatible&incompatDirty != 0 || d.header.doubt != sure
	d.header.Unlock()
	return freed || marked || d.dirty() || d.refs.pending()
}

// dirty says whether the file does not know yet where something lies.
func (d *Disk) dirty() bool {
	m := &d.maps
	m.Lock()
	defer m.Unlock()
	return len(m.dirty) > 0 || len(m.dirtyL1) > 0 || len(m.freed.ranges) > 0
}
