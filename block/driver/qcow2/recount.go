// SPDX-License-Identifier: Apache-2.0

package qcow2

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/blkmirror/blkmirror/block"
)

// recount makes the refcounts right in an image whose dirty bit says that they may be wrong, or that lacks refcount blocks which it
// needs: all references are counted, from the header down, and the refcount blocks are changed to what was found. The image stays
// marked as dirty until that is durable.
func (d *Disk) recount(ctx context.Context, dirty bool) error {
	c := &counter{d: d, ctx: ctx, pages: map[int64]*countPage{}, tables: map[int64]uint32{}, end: d.up(d.file.Size())}
	if err := c.count(); err != nil {
		return &block.Error{Kind: block.KindInvalid, Op: block.OpGraph,
			Err: fmt.Errorf("the image was not closed properly or lacks refcount blocks, and its refcounts cannot be repaired: %w", err)}
	}
	if !dirty && len(c.missing()) == 0 {
		return nil
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
	// maxCountTables is how many L2 tables an image may have, those of snapshots included: all that a table of 32 MiB leads to, four times.
	maxCountTables = 16 << 20
	wasCopied      = 1 << 31 // somebody thinks to be alone
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
		if err := c.table(off); err != nil {
			return err
		}
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
			if err := c.table(off); err != nil {
				return err
			}
			if err := c.cluster(off, "an L2 table"); err != nil {
				return err
			}
		}
	}
	return nil
}

// table counts a way to an L2 table.
func (c *counter) table(off int64) error {
	if len(c.tables) == maxCountTables {
		return &block.Error{Kind: block.KindNoMemory, Op: block.OpGraph, Err: fmt.Errorf("it has too many L2 tables")}
	}
	c.tables[off]++
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

// repair changes the refcounts to what was counted, and makes the refcount blocks that are missing.
func (c *counter) repair() error {
	r := &c.d.refs
	for number, page := range c.pages {
		for i, v := range page {
			cluster := number*pageClusters + int64(i)
			if v&wasCopied != 0 && v != wasCopied|1 {
				return c.d.corrupted(cluster<<c.d.clusterBits, c.d.cluster, "the cluster at %#x is referred to %d times, once by "+
					"an entry that calls it its own", cluster<<c.d.clusterBits, v&^wasCopied)
			}
			if uint64(v&^wasCopied) > r.most() {
				return c.d.corrupted(cluster<<c.d.clusterBits, c.d.cluster, "the cluster at %#x is referred to %d times, more "+
					"than a refcount can say", cluster<<c.d.clusterBits, v&^wasCopied)
			}
		}
	}
	r.Lock()
	defer r.Unlock()
	r.hint = 0
	used := int64(0)
	for index := range r.table {
		if err := c.repairBlock(index, len(r.table)); err != nil {
			return err
		}
	}
	missing := c.missing()
	if len(missing) == 0 {
		return nil
	}
	for number, page := range c.pages { // the blocks go behind everything that is in use, where nothing is that does not count yet
		for i, v := range page {
			if v != 0 {
				used = max(used, number*pageClusters+int64(i)+1)
			}
		}
	}
	r.lowerTopLocked(used)
	for _, index := range missing {
		if err := c.newBlock(index); err != nil {
			return err
		}
	}
	for _, index := range missing {
		if err := c.repairBlock(index, int(used/r.perBlock)); err != nil {
			return err
		}
	}
	return nil
}

// repairBlock makes the refcounts of a block right, if there is one. From block last on only what was counted is changed.
func (c *counter) repairBlock(index, last int) error {
	r := &c.d.refs
	b, err := r.blockLocked(c.ctx, index)
	if err != nil || b == nil {
		return err
	}
	for i := range r.perBlock {
		v := c.of(int64(index)*r.perBlock + i)
		if r.value(b.data, i) == v || v == 0 && index >= last {
			continue
		}
		r.setValue(b.data, i, v)
		r.markLocked(b)
	}
	return nil
}

// of is how many references to a cluster were counted.
func (c *counter) of(cluster int64) uint64 {
	if page := c.pages[cluster/pageClusters]; page != nil {
		return uint64(page[cluster%pageClusters] &^ wasCopied)
	}
	return 0
}

// missing lists the blocks that there should be, in ascending order.
func (c *counter) missing() (list []int) {
	r := &c.d.refs
	for number, page := range c.pages {
		for i, v := range page {
			index := int((number*pageClusters + int64(i)) / r.perBlock)
			if v != 0 && (index >= len(r.table) || r.table[index]&^511 == 0) {
				list = append(list, index)
			}
		}
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// newBlock makes a refcount block.
func (c *counter) newBlock(index int) error {
	r := &c.d.refs
	for {
		if index < len(r.table) && r.table[index]&^511 != 0 {
			return nil // by the way
		}
		var t taken
		err := errTableFull
		if index < len(r.table) {
			t, err = r.areaLocked(c.ctx, 1)
		}
		if err == errTableFull {
			if err := r.growTableLocked(c.ctx); err != nil {
				return err
			}
			continue
		}
		if err != nil {
			return err
		}
		if r.table[index]&^511 != 0 { // with what was taken
			_, err := r.releaseLocked(c.ctx, []freeRange{{(t.end - 1) << c.d.clusterBits, c.d.cluster, freedOther}})
			return err
		}
		b, err := r.roomLocked(c.ctx)
		if err != nil {
			r.untakeLocked(c.ctx, t)
			return err
		}
		r.addBlockLocked(index, (t.end-1)<<c.d.clusterBits, b)
	}
}

// encodeTable is a table of 64-bit numbers as it stands in the file.
func encodeTable(table []uint64, bytes int64) []byte {
	b := make([]byte, bytes)
	for i, e := range table {
		binary.BigEndian.PutUint64(b[i*8:], e)
	}
	return b
}
