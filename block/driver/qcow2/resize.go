// SPDX-License-Identifier: Apache-2.0

package qcow2

import (
	"context"
	"fmt"

	"github.com/blkmirror/blkmirror/block"
)

func cannot(format string, args ...any) error {
	return &block.Error{Kind: block.KindNotSupported, Op: block.OpGraph, Err: fmt.Errorf(format, args...)}
}

// Resize changes the length of the disk. What it gets reads as zeroes, whatever a longer backing node has there; what it loses
// is freed. The node is drained.
func (d *Disk) Resize(ctx context.Context, size int64) error {
	old := d.Size()
	if size == old {
		return nil
	}
	if err := d.prepare(ctx); err != nil {
		return err
	}
	if d.version < 3 && len(d.info.Load().Snapshots) > 0 {
		return cannot("Can't resize a v2 image which has snapshots")
	}
	d.header.Lock()
	needed := d.header.l1Needed(uint64(size))
	d.header.Unlock()
	if needed*8 > maxL1Bytes {
		return &block.Error{Kind: block.KindInvalid, Op: block.OpGraph,
			Err: fmt.Errorf("The image size is too large (try using a larger cluster size)")}
	}
	if size < old {
		return d.shrink(ctx, old, size)
	}
	if err := d.growL1(ctx, int64(needed)); err != nil {
		return err
	}
	if d.external {
		if err := d.growData(ctx, size); err != nil {
			return err
		}
	}
	d.size.Store(size)
	err := d.zeroNew(ctx, old, size)
	if err == nil {
		err = d.sync(ctx) // the zeroes are there before anybody can read behind the old end
	}
	if err == nil {
		err = d.changeHeader(ctx, func(h *header) { h.size = uint64(size) })
	}
	if err != nil {
		d.size.Store(old)
	}
	return err
}

// zeroNew makes a part of the disk read as zeroes that was not there before.
func (d *Disk) zeroNew(ctx context.Context, off, end int64) error {
	for off < end {
		e, _, err := d.status(ctx, off, end-off)
		if err != nil {
			return err
		}
		if e.Status&block.StatusZero == 0 {
			if err := d.zeroData(ctx, off, e.Len); err != nil {
				return err
			}
		}
		off += e.Len
	}
	return nil
}

func (d *Disk) zeroData(ctx context.Context, off, n int64) error {
	if d.version >= 3 {
		return d.zero(ctx, off, n, 0)
	}
	b := block.GetBuffer(int(min(n, 1<<20)))
	defer b.Release()
	clear(b.B)
	for n > 0 {
		step := min(n, int64(len(b.B)))
		if err := d.write(ctx, b.B[:step], off); err != nil {
			return err
		}
		off, n = off+step, n-step
	}
	return nil
}

// growL1 makes the L1 table long enough, at a new place if it does not fit in its clusters.
func (d *Disk) growL1(ctx context.Context, needed int64) error {
	d.maps.Lock()
	entries := int64(len(d.maps.l1))
	d.maps.Unlock()
	if needed <= entries {
		return nil
	}
	if err := d.sync(ctx); err != nil { // the table in the file is as that in memory
		return err
	}
	bytes := d.up(needed * 8)
	off, err := d.refs.allocArea(ctx, bytes)
	if err != nil {
		return err
	}
	d.maps.Lock()
	table := append(append(make([]uint64, 0, needed), d.maps.l1...), make([]uint64, needed-entries)...)
	d.maps.Unlock()
	err = d.file.WriteAt(ctx, encodeTable(table, bytes), off, 0)
	if err == nil {
		d.commits.Lock()
		err = d.commit(ctx, true)
		d.commits.Unlock()
	}
	if err != nil {
		d.free(ctx, []freeRange{{off, bytes, freedOther}})
		return err
	}
	var oldOff int64
	err = d.changeHeader(ctx, func(h *header) {
		oldOff = int64(h.l1Offset)
		h.l1Offset, h.l1Size = uint64(off), uint32(needed)
	})
	if err != nil {
		return err // the file may lead to the new table, which is leaked at worst
	}
	d.maps.Lock()
	d.maps.l1 = table
	d.maps.Unlock()
	d.meta.move(activeL1, off, bytes)
	if entries == 0 {
		return nil
	}
	d.free(ctx, []freeRange{{oldOff, d.up(entries * 8), freedOther}})
	return nil
}

// shrink frees what is behind the new end before the header says so: if something fails, the disk still has its length.
func (d *Disk) shrink(ctx context.Context, old, size int64) error {
	err := d.remap(ctx, d.up(size), d.up(old), true, func(_ uint32, e *entry) bool {
		changes := *e != entry{host: none}
		*e = entry{host: none}
		return changes
	})
	if err == nil {
		err = d.sync(ctx)
	}
	if err == nil && d.raw && size < d.data.Size() {
		err = d.data.Resize(ctx, size)
	}
	if err == nil {
		err = d.changeHeader(ctx, func(h *header) { h.size = uint64(size) })
	}
	if err == nil {
		d.size.Store(size)
	}
	return err
}

// ChangeBackingFile writes another name of the backing file, and its format, into the header; "" for none. The node is drained.
func (d *Disk) ChangeBackingFile(ctx context.Context, name, format string) error {
	if err := d.mayWrite(); err != nil {
		return err
	}
	switch {
	case d.options.readOnly:
		return &block.Error{Kind: block.KindReadOnly, Op: block.OpGraph}
	case d.raw && name != "":
		return cannot("Cannot set backing file for an image with a raw data file")
	case len(name) > maxBackingName:
		return &block.Error{Kind: block.KindInvalid, Op: block.OpGraph,
			Err: fmt.Errorf("Backing file name is too long (%d bytes, at most %d)", len(name), maxBackingName)}
	}
	d.header.Lock()
	defer d.header.Unlock()
	h := d.header.header
	h.extensions = append([]extension(nil), h.extensions...)
	h.autoclear &= autoclearKnown | autoclearBitmaps
	h.backingFile = name
	h.setExtension(extBackingFormat, nil)
	if name != "" && format != "" {
		h.setExtension(extBackingFormat, []byte(format))
	}
	return d.writeHeaderLocked(ctx, h, true)
}

var (
	_ block.Resizer        = (*Disk)(nil)
	_ block.BackingChanger = (*Disk)(nil)
)
