// SPDX-License-Identifier: Apache-2.0

package qcow2

import (
	"context"
	"encoding/binary"
	"fmt"

	"github.com/blkmirror/blkmirror/block"
)

// recount makes the refcounts right in an image whose dirty bit says that they may be wrong: all references are counted, from the
// header down, and the refcount blocks are changed to what was found. The image stays marked as dirty until that is durable.
func (d *Disk) recount(ctx context.Context) error {
	c := &counter{d: d, ctx: ctx, pages: map[int64]*countPage{}, tables: map[int64]uint32{}, end: d.up(d.file.Size())}
	if err := c.count(); err != nil {
		return &block.Error{Kind: block.KindInvalid, Op: block.OpGraph,
			Err: fmt.Errorf("the image was not closed properly and its refcounts cannot be repaired: %w", err)}
	}
	if err := c.repair(); err != nil {
		return err
	}
	d.commits.Lock()
	defer d.commits.Unlock()
	return d.commit(ctx, true)
}

// counter counts references to clusters. Its memory grows with the image but is bounded.
type counter struct {
	d      *Disk
	ctx    context.Context
	end    int64 // of the file; nothing may lie behind it
	pages  map[int64]*countPage
	tables map[int64]uint32 // how many L1 entries lead to an L2 table
	active map[int64]struct{}
}

const (
	pageClusters  = 512
	maxCountPages = 1 << 30 / (pageClusters * 4)
	wasCopied     = 1 << 31 // somebody thinks to be alone
)

type countPage [pageClusters]uint32

func (c *counter) add(off, n int64, weight uint32, flags uint32, what string) error {
	d := c.d
	if n == 0 {
		return nil
	}
	if off < 0 || off > c.end-n {
		return fmt.Errorf("%s at %#x lies outside of the file", what, off)
	}
	for cluster := off >> d.clusterBits; cluster<<d.clusterBits < off+n; cluster++ {
		page := c.pages[cluster/pageClusters]
		if page == nil {
			if len(c.pages) == maxCountPages {
				return &block.Error{Kind: block.KindNoMemory, Op: block.OpGraph, Err: fmt.Errorf("it has too many clusters")}
			}
			page = new(countPage)
			c.pages[cluster/pageClusters] = page
		}
		v := &page[cluster%pageClusters]
		if *v&^wasCopied > wasCopied-1-weight {
			return fmt.Errorf("%s at %#x is referred to too often", what, off)
		}
		*v = (*v + weight) | flags
	}
	return nil
}

func (c *counter) aligned(off int64, what string) error {
	if off&(c.d.cluster-1) != 0 {
		return fmt.Errorf("%s at %#x is unaligned", what, off)
	}
	return nil
}

func (c *counter) count() error {
	d, info := c.d, c.d.info.Load()
	d.header.Lock()
	h := d.header.header
	d.header.Unlock()
	for _, a := range []struct {
		off, n int64
		what   string
	}{
		{0, d.cluster, "the header"},
		{int64(h.l1Offset), d.up(int64(h.l1Size) * 8), "the L1 table"},
		{int64(h.refTableOffset), int64(h.refTableClusters) << d.clusterBits, "the refcount table"},
		{int64(h.snapshotsOffset), d.up(info.snapshotBytes), "the snapshot table"},
	} {
		if err := c.add(a.off, a.n, 1, 0, a.what); err != nil {
			return err
		}
	}
	for _, e := range d.refs.table {
		if err := c.cluster(int64(e&^511), "a refcount block"); err != nil {
			return err
		}
	}
	if err := c.l1Tables(info); err != nil {
		return err
	}
	for off, weight := range c.tables {
		if err := c.l2Table(off, weight); err != nil {
			return err
		}
	}
	return c.bitmaps(&h, info)
}

// cluster counts a reference to one cluster of metadata, if there is one.
func (c *counter) cluster(off int64, what string) error {
	if off == 0 {
		return nil
	}
	if err := c.aligned(off, what); err != nil {
		return err
	}
	return c.add(off, c.d.cluster, 1, 0, what)
}

// l1Tables finds all L2 tables, those of snapshots too.
func (c *counter) l1Tables(info *Info) error {
	d := c.d
	c.active = map[int64]struct{}{}
	for _, e := range d.maps.l1 {
		off := int64(e & offsetMask)
		if off == 0 {
			continue
		}
		if _, again := c.active[off]; again {
			return fmt.Errorf("the L1 table leads to the L2 table at %#x twice", off)
		}
		c.active[off] = struct{}{}
		c.tables[off]++
		flags := uint32(0)
		if e&flagCopied != 0 {
			flags = wasCopied
		}
		err := c.aligned(off, "an L2 table")
		if err == nil {
			err = c.add(off, d.cluster, 1, flags, "an L2 table")
		}
		if err != nil {
			return err
		}
	}
	left := c.end // the tables lie in the file, so together they are not longer
	for _, s := range info.Snapshots {
		if left -= s.l1Size * 8; left < 0 {
			return fmt.Errorf("the L1 tables of the snapshots overlap")
		}
		if err := c.add(s.l1Offset, d.up(s.l1Size*8), 1, 0, "the L1 table of a snapshot"); err != nil {
			return err
		}
		l1, err := readTable(c.ctx, d.file, uint64(s.l1Offset), s.l1Size, "L1 table of a snapshot")
		if err != nil {
			return err
		}
		for _, e := range l1 {
			off := int64(e & offsetMask)
			if off == 0 {
				continue
			}
			c.tables[off]++
			if err := c.cluster(off, "an L2 table"); err != nil {
				return err
			}
		}
	}
	return nil
}

// l2Table counts what an L2 table refers to, once for each way that leads to it.
func (c *counter) l2Table(off int64, weight uint32) error {
	d := c.d
	b := block.GetBuffer(int(d.cluster))
	defer b.Release()
	if err := readPadded(c.ctx, d.file, b.B, off); err != nil {
		return err
	}
	if d.external {
		return nil // guest clusters are not counted
	}
	_, active := c.active[off]
	for at := int64(0); at < d.cluster; at += d.entry {
		e, err := d.readEntry(b.B[at:], 0)
		switch {
		case err != nil:
			return err
		case e.host == none:
			continue
		case e.compressed:
			first := d.down(e.host)
			err = c.add(first, min(d.up(e.host+e.length), c.end)-first, weight, 0, "compressed data")
		default:
			flags := uint32(0)
			if active && e.copied {
				flags = wasCopied
			}
			err = c.add(e.host, d.cluster, weight, flags, "a cluster")
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (c *counter) bitmaps(h *header, info *Info) error {
	if len(info.Bitmaps) == 0 {
		return nil
	}
	e, err := h.bitmaps()
	if err != nil {
		return err
	}
	if err := c.add(e.directoryOffset, c.d.up(e.directorySize), 1, 0, "the bitmap directory"); err != nil {
		return err
	}
	for _, b := range info.Bitmaps {
		if b.tableEntries*8 > maxL1Bytes {
			return fmt.Errorf("the table of bitmap '%s' is too large", b.Name)
		}
		if err := c.add(b.tableOffset, c.d.up(b.tableEntries*8), 1, 0, "a bitmap table"); err != nil {
			return err
		}
		table, err := readTable(c.ctx, c.d.file, uint64(b.tableOffset), b.tableEntries, "bitmap table")
		if err != nil {
			return err
		}
		for _, e := range table {
			if err := c.cluster(int64(e&offsetMask), "a part of a bitmap"); err != nil {
				return err
			}
		}
	}
	return nil
}

// repair changes the refcounts to what was counted.
func (c *counter) repair() error {
	r := &c.d.refs
	for number, page := range c.pages {
		for i, v := range page {
			cluster := number*pageClusters + int64(i)
			if v&wasCopied != 0 && v != wasCopied|1 {
				return c.d.corrupted(cluster<<c.d.clusterBits, c.d.cluster, "the cluster at %#x is referred to %d times, once by "+
					"an entry that calls it its own", cluster<<c.d.clusterBits, v&^wasCopied)
			}
		}
	}
	r.Lock()
	defer r.Unlock()
	r.hint = 0
	for index := range r.table {
		b, err := r.blockLocked(c.ctx, index)
		if err != nil {
			return err
		}
		for i := range r.perBlock {
			cluster := int64(index)*r.perBlock + i
			var v uint64
			if page := c.pages[cluster/pageClusters]; page != nil {
				v = uint64(page[cluster%pageClusters] &^ wasCopied)
			}
			switch {
			case b == nil && v != 0:
				return noBlock(cluster << c.d.clusterBits)
			case b == nil || r.value(b.data, i) == v:
				continue
			case v > r.most():
				return c.d.corrupted(cluster<<c.d.clusterBits, c.d.cluster, "the cluster at %#x is referred to %d times, more "+
					"than a refcount can say", cluster<<c.d.clusterBits, v)
			}
			r.setValue(b.data, i, v)
			r.markLocked(b)
		}
	}
	return nil
}

func noBlock(off int64) error {
	return &block.Error{Kind: block.KindInvalid, Op: block.OpGraph, Err: fmt.Errorf("the image was not closed properly, and "+
		"there is no refcount block for the cluster at %#x; 'qemu-img check -r all' can make one", off)}
}

// encodeTable is a table of 64-bit numbers as it stands in the file.
func encodeTable(table []uint64, bytes int64) []byte {
	b := make([]byte, bytes)
	for i, e := range table {
		binary.BigEndian.PutUint64(b[i*8:], e)
	}
	return b
}
