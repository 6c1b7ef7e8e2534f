// SPDX-License-Identifier: Apache-2.0

package qcow2

import (
	"slices"
	"sync"

	"github.com/blkmirror/blkmirror/block"
)

// metadata knows which places of the file hold metadata. Refcounts should keep everything else away from them; in an image whose
// refcounts or tables are wrong they do not, and then a write is refused rather than let it destroy more.
type metadata struct {
	mu struct {
		sync.Mutex
		tables []int64 // places of L2 tables and refcount blocks, a cluster each, in ascending order
		areas  []area
	}
	cluster int64
}

// activeL1 is the table that can move, besides refTable.
const (
	activeL1 = "the active L1 table"
	refTable = "the refcount table"
)

// area is a place of metadata that is not one cluster.
type area struct {
	off, end int64
	what     string
}

func (m *metadata) init(d *Disk, info *Info) error {
	h := &d.header.header
	m.cluster = d.cluster
	m.mu.areas = []area{
		{0, d.cluster, "the header"},
		{int64(h.l1Offset), int64(h.l1Offset) + d.up(int64(h.l1Size)*8), activeL1},
		{int64(h.refTableOffset), int64(h.refTableOffset) + int64(h.refTableClusters)<<d.clusterBits, refTable},
		{int64(h.snapshotsOffset), int64(h.snapshotsOffset) + d.up(info.snapshotBytes), "the snapshot table"},
	}
	for i, a := range m.mu.areas {
		for _, b := range m.mu.areas[:i] {
			if a.off < b.end && b.off < a.end {
				return invalid("The image's metadata overlaps: %s at %d and %s at %d", b.what, b.off, a.what, a.off)
			}
		}
	}
	for _, s := range info.Snapshots {
		m.mu.areas = append(m.mu.areas, area{s.l1Offset, s.l1Offset + d.up(s.l1Size*8), "the L1 table of a snapshot"})
	}
	for _, table := range [][]uint64{d.maps.l1, d.refs.table} {
		for _, e := range table {
			if off := int64(e & offsetMask); off != 0 {
				m.mu.tables = append(m.mu.tables, off)
			}
		}
	}
	slices.Sort(m.mu.tables)
	for i, off := range m.mu.tables {
		if off&(d.cluster-1) != 0 {
			continue // told when it is met
		}
		if i > 0 && off == m.mu.tables[i-1] {
			return invalid("The image's metadata overlaps: two L2 tables or refcount blocks at %d", off)
		}
		for _, a := range m.mu.areas[:4] { // there may be very many snapshots
			if a.off <= off && off < a.end {
				return invalid("The image's metadata overlaps: %s at %d and an L2 table or refcount block at %d", a.what, a.off, off)
			}
		}
	}
	return nil
}

// add notes a new L2 table or refcount block.
func (m *metadata) add(off int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	at, _ := slices.BinarySearch(m.mu.tables, off)
	m.mu.tables = slices.Insert(m.mu.tables, at, off)
}

// remove notes that there is no table any more at off.
func (m *metadata) remove(off int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if at, found := slices.BinarySearch(m.mu.tables, off); found {
		m.mu.tables = slices.Delete(m.mu.tables, at, at+1)
	}
}

// move notes that a table of more than a cluster lies somewhere else now.
func (m *metadata) move(what string, off, n int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range m.mu.areas {
		if m.mu.areas[i].what == what {
			m.mu.areas[i].off, m.mu.areas[i].end = off, off+n
		}
	}
}

// overlap names the metadata that a range touches; "" for none.
func (m *metadata) overlap(off, n int64) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, a := range m.mu.areas {
		if off < a.end && a.off < off+n {
			return a.what
		}
	}
	at, _ := slices.BinarySearch(m.mu.tables, off-m.cluster+1)
	if at < len(m.mu.tables) && m.mu.tables[at] < off+n {
		return "an L2 table or refcount block"
	}
	return ""
}

// checkOverlap is the error for a write to a place of the file that holds metadata.
func (d *Disk) checkOverlap(off, n int64) error {
	if what := d.meta.overlap(off, n); what != "" {
		return d.corrupted(off, n, "a write to %d+%d would overwrite %s", off, n, what)
	}
	return nil
}

// mayWrite is the error for a write to an image that turned out to be corrupt.
func (d *Disk) mayWrite() error {
	if err := d.corrupt.Load(); err != nil {
		return &block.Error{Kind: block.KindInvalid, Op: block.OpGraph, Err: *err}
	}
	return nil
}
