// SPDX-License-Identifier: Apache-2.0

package qcow2

import (
	"context"
	"encoding/binary"
	"fmt"
	"sync"

	"github.com/blkmirror/blkmirror/block"
)

// maps are the tables that say where guest clusters lie: the L1 table, which is in memory as a whole, and slices of L2 tables
// in a cache. The lock is never held during I/O.
type maps struct {
	sync.Mutex
	l1      []uint64
	slices  map[int64]*slice // by place in the file
	loading map[int64]chan struct{}
	recent  slice // head of a ring, the slice used last next to it
	round   int   // of the cleaner

	// What the file does not know yet.
	dirty   []*slice
	dirtyL1 map[int]struct{}
	freed   freed // clusters that the tables in the file still refer to

	unflushed []int64 // places of new L2 tables that were written since the last flush that succeeded
}

// slice is a part of an L2 table.
type slice struct {
	off        int64 // in the file
	data       []byte
	lo, hi     int  // what is dirty; hi is 0 if nothing is
	writing    bool // what was dirty is on its way into the file
	used       int  // in which round of the cleaner, last
	prev, next *slice
}

func (m *maps) init(l1 []uint64) {
	m.l1, m.slices, m.loading = l1, map[int64]*slice{}, map[int64]chan struct{}{}
	m.dirtyL1 = map[int]struct{}{}
	m.recent.prev, m.recent.next = &m.recent, &m.recent
}

func (m *maps) takeOut(s *slice) { s.prev.next, s.next.prev = s.next, s.prev }

func (m *maps) putFirst(s *slice) {
	s.prev, s.next = &m.recent, m.recent.next
	s.prev.next, s.next.prev = s, s
}

// markLocked notes that bytes of a slice changed.
func (m *maps) markLocked(s *slice, lo, hi int) {
	lo, hi = lo&^(sectorSize-1), (hi+sectorSize-1)&^(sectorSize-1)
	if s.hi == 0 {
		s.lo, s.hi = lo, hi
		m.dirty = append(m.dirty, s)
		return
	}
	s.lo, s.hi = min(s.lo, lo), max(s.hi, hi)
}

// evictLocked takes the slice out of the cache that was unused for longest; nil if all are dirty.
func (m *maps) evictLocked() *slice {
	for s := m.recent.prev; s != &m.recent; s = s.prev {
		if s.hi == 0 && !s.writing {
			m.takeOut(s)
			delete(m.slices, s.off)
			return s
		}
	}
	return nil
}

// dropLocked forgets the slices of a table that has been replaced. They are clean, because a table that is shared does not
// change.
func (m *maps) dropLocked(table, cluster, sliceSize int64) {
	for off := table; off < table+cluster; off += sliceSize {
		if s := m.slices[off]; s != nil {
			m.takeOut(s)
			delete(m.slices, off)
		}
	}
}

// l1Index is where the L1 table speaks of guest.
func (g *geometry) l1Index(guest int64) int { return int(guest >> g.l1Shift) }

// position is the place of the entry for guest in its slice, and that of the slice in its table.
func (d *Disk) position(guest int64) (inSlice int, inTable int64) {
	at := guest >> d.clusterBits << d.entryShift() & (d.cluster - 1)
	return int(at & (d.options.sliceSize - 1)), at &^ (d.options.sliceSize - 1)
}

func (g *geometry) entryShift() uint32 {
	if g.extended {
		return 4
	}
	return 3
}

// sliceEnd is where on the disk the slice ends that speaks of guest.
func (d *Disk) sliceEnd(guest int64) int64 {
	span := d.options.sliceSize >> d.entryShift() << d.clusterBits
	return guest&^(span-1) + span
}

// lockSlice holds the lock of maps and returns the slice with the entry of guest; nil if there is no L2 table. After an error
// the lock is not held.
func (d *Disk) lockSlice(ctx context.Context, guest int64) (*slice, error) {
	m, index := &d.maps, d.l1Index(guest)
	_, inTable := d.position(guest)
	m.Lock()
	for crowded := false; ; {
		var l1 uint64
		if index < len(m.l1) {
			l1 = m.l1[index]
		}
		table := int64(l1 & offsetMask)
		if table == 0 {
			return nil, nil
		}
		off := table + inTable
		if s := m.slices[off]; s != nil {
			s.used = m.round
			if m.recent.next != s {
				m.takeOut(s)
				m.putFirst(s)
			}
			return s, nil
		}
		if done := m.loading[off]; done != nil {
			m.Unlock()
			<-done
			m.Lock()
			continue
		}
		var s *slice
		for len(m.slices)+len(m.loading) >= d.options.maxSlices {
			out := m.evictLocked()
			if out == nil {
				break
			}
			s = out
		}
		if s == nil && len(m.slices)+len(m.loading) >= d.options.maxSlices && !crowded {
			crowded = true // if it does not help, more is taken for as long as so many requests are under way
			m.Unlock()
			if err := d.sync(ctx); err != nil {
				return nil, err
			}
			m.Lock()
			continue
		}
		done := make(chan struct{})
		m.loading[off] = done
		m.Unlock()
		s, err := d.loadSlice(ctx, s, table, off)
		d.armCleaner()
		m.Lock()
		delete(m.loading, off)
		close(done)
		if err != nil {
			m.Unlock()
			return nil, err
		}
		if m.l1[index]&offsetMask == uint64(table) {
			s.used = m.round
			m.slices[off] = s
			m.putFirst(s)
		}
	}
}

// loadSlice reads a slice into the memory of s, or of a new one.
func (d *Disk) loadSlice(ctx context.Context, s *slice, table, off int64) (*slice, error) {
	if err := d.checkTable(table, "L2 table"); err != nil {
		return nil, err
	}
	if s == nil {
		s = &slice{data: make([]byte, d.options.sliceSize)}
	}
	s.off = off
	d.file.Event("l2_load")
	return s, readPadded(ctx, d.file, s.data, off)
}

// checkTable is the error for a table of one cluster that cannot be where it is said to be.
func (d *Disk) checkTable(off int64, what string) error {
	switch {
	case off&(d.cluster-1) != 0:
		return d.corrupted(off, d.cluster, "%s offset %#x unaligned", what, off)
	case off == 0 || off >= d.file.Size():
		return d.corrupted(off, d.cluster, "%s at %#x lies outside of the file", what, off)
	}
	return nil
}

// kind says who decides what a run of bytes reads as.
type kind uint8

const (
	unallocated kind = iota // the backing node; zeroes without one
	zeroes                  // this layer
	data                    // this layer, at a place of its own
	compressed              // this layer, by a part of a decompressed cluster
)

// run is a range of the disk that is mapped in one way.
type run struct {
	kind   kind
	n      int64 // bytes
	host   int64 // data: place of the first byte
	copied bool  // data: may be written in place
	entry  entry // compressed: of the cluster
}

// classify tells how subcluster number sub of a cluster is mapped.
func (e *entry) classify(sub uint32) kind {
	switch {
	case e.compressed:
		return compressed
	case e.allocated>>sub&1 != 0:
		return data
	case e.zero>>sub&1 != 0:
		return zeroes
	}
	return unallocated
}

// lookup tells how the first bytes of the n at off are mapped: as many as are mapped in the same way, next to each other.
func (d *Disk) lookup(ctx context.Context, off, n int64) (run, error) {
	s, err := d.lockSlice(ctx, off)
	if err != nil {
		return run{}, err
	}
	defer d.maps.Unlock()
	if s == nil {
		return run{kind: unallocated, n: d.emptyLocked(off, n)}, nil
	}
	n = min(n, d.sliceEnd(off)-off)
	at, _ := d.position(off)
	guest := d.down(off)
	e, err := d.readEntry(s.data[at:], guest)
	if err != nil {
		return run{}, d.badEntryLocked(guest, s.off+int64(at), err)
	}
	in := off - guest
	r := run{kind: e.classify(uint32(in >> d.subBits)), copied: e.copied}
	switch r.kind {
	case compressed:
		r.entry, r.n = e, min(n, d.cluster-in)
		return r, nil
	case data:
		r.host = e.host + in
		if skip := d.follow(s.data[at:], off+n-guest); skip > 0 {
			last := at + skip*int(d.entry)
			if l, err := d.readEntry(s.data[last:], guest+int64(skip)<<d.clusterBits); err == nil {
				e, at, guest, in = l, last, guest+int64(skip)<<d.clusterBits, 0
			}
		}
	}
	for r.n = 0; ; {
		// The rest of this cluster, as far as it is of one kind.
		for ; in < d.cluster && e.classify(uint32(in>>d.subBits)) == r.kind; in = (in | (d.sub - 1)) + 1 {
			r.n = guest + (in | (d.sub - 1)) + 1 - off
		}
		if in < d.cluster || r.n >= n {
			break
		}
		at, guest, in = at+int(d.entry), guest+d.cluster, 0
		if e, err = d.readEntry(s.data[at:], guest); err != nil { // told when somebody wants it
			break
		}
		if r.kind == data && (e.host != r.host+r.n || e.copied != r.copied) {
			break
		}
	}
	r.n = min(r.n, n)
	return r, nil
}

// follow is how many entries after the first are like it and lie behind each other on the host, of those for n bytes. It only compares, so the
// last one has to be read. Extended entries (subclusters) it does not know.
func (d *Disk) follow(entries []byte, n int64) (more int) {
	if d.entry != 8 {
		return 0
	}
	raw := binary.BigEndian.Uint64(entries)
	for clusters := int((n - 1) >> d.clusterBits); more < clusters; more++ {
		if raw += uint64(d.cluster); binary.BigEndian.Uint64(entries[8*(more+1):]) != raw {
			break
		}
	}
	return more
}

// emptyLocked is how many of n bytes no L2 table speaks of.
func (d *Disk) emptyLocked(off, n int64) int64 {
	i := d.l1Index(off) + 1
	for i < len(d.maps.l1) && int64(i)<<d.l1Shift < off+n && d.maps.l1[i]&offsetMask == 0 {
		i++
	}
	if i >= len(d.maps.l1) {
		return n
	}
	return min(n, int64(i)<<d.l1Shift-off)
}

// badEntryLocked gives up the lock of maps, tells of an entry that makes no sense, and takes the lock again.
func (d *Disk) badEntryLocked(guest, place int64, err error) error {
	d.maps.Unlock()
	defer d.maps.Lock()
	return d.corrupted(place, d.entry, "L2 entry at %#x for guest offset %#x: %w", place, guest, err)
}

// corrupted tells that the image turned out not to be in order. If it may be written to, it is marked and will not be any more.
func (d *Disk) corrupted(off, n int64, format string, args ...any) error {
	var err error = &block.Error{Kind: block.KindIO, Op: block.OpGraph, Err: fmt.Errorf("qcow2: Image is corrupt: "+format, args...)}
	c := Corruption{Message: err.Error(), Off: off, Len: n, Fatal: !d.options.readOnly}
	if d.corrupt.Load() != nil {
		return err
	}
	if c.Fatal && d.corrupt.CompareAndSwap(nil, &err) {
		d.markCorrupt()
	}
	if d.options.onCorrupt != nil {
		d.options.onCorrupt(c)
	}
	return err
}
