// SPDX-License-Identifier: Apache-2.0

package qcow2

import (
	"context"

	"github.com/blkmirror/blkmirror/block"
)

// changeHeader changes fields of the header, in memory and durably in the file. They lie in one sector, so either all of them
// change or none.
func (d *Disk) changeHeader(ctx context.Context, change func(h *header)) error {
	d.header.Lock()
	defer d.header.Unlock()
	h := d.header.header
	change(&h)
	return d.writeHeaderLocked(ctx, h, false)
}

// doubt says which part of the header in the file is not known to be what it is in memory.
type doubt uint8

const (
	sure doubt = iota
	doubtFields
	doubtAll
)

// writeHeaderLocked makes h the header, its fields only or with the extensions and the name of the backing file behind them. After
// a failure the file may have either header: nothing must be given up that one of them leads to, and settleHeader decides.
func (d *Disk) writeHeaderLocked(ctx context.Context, h header, whole bool) error {
	whole = whole || d.header.doubt == doubtAll
	b := h.encodeFixed()
	if whole {
		var err error
		if b, err = h.encode(); err != nil {
			return err
		}
	}
	err := d.file.WriteAt(ctx, b, 0, 0)
	if err == nil {
		err = d.file.Flush(ctx)
	}
	switch {
	case err == nil:
		d.header.header, d.header.doubt = h, sure
	case whole:
		d.header.doubt = doubtAll
	default:
		d.header.doubt = doubtFields
	}
	return err
}

// settleHeader writes the header again if a change of it failed. Nothing gets into the tables of the file before: the file may lead
// to others.
func (d *Disk) settleHeader(ctx context.Context) error {
	d.header.Lock()
	defer d.header.Unlock()
	if d.header.doubt == sure {
		return nil
	}
	return d.writeHeaderLocked(ctx, d.header.header, false)
}

// prepare makes the image ready for writes: once, and again after it was brought to rest with a mark that must be set again.
func (d *Disk) prepare(ctx context.Context) error {
	if err := d.mayWrite(); err != nil || d.ready.done.Load() {
		return err
	}
	d.ready.Lock()
	defer d.ready.Unlock()
	if d.ready.done.Load() {
		return nil
	}
	if d.options.readOnly {
		return &block.Error{Kind: block.KindReadOnly, Op: block.OpGraph}
	}
	if err := d.settleHeader(ctx); err != nil {
		return err
	}
	d.header.Lock()
	h := d.header.header
	d.header.Unlock()
	if dirty := h.incompatible&incompatDirty != 0; !d.ready.counted && (dirty || d.refs.lackBlocks()) {
		if err := d.recount(ctx, dirty); err != nil {
			return err
		}
	}
	d.ready.counted = true
	// What is not known here cannot be kept true, and persistent bitmaps miss what is about to be written.
	autoclear := h.autoclear & autoclearKnown
	if d.bitmapsInUse.Load() {
		autoclear = h.autoclear & (autoclearKnown | autoclearBitmaps)
	}
	incompatible := h.incompatible &^ incompatDirty
	if d.options.lazy {
		incompatible |= incompatDirty
	}
	if autoclear != h.autoclear || incompatible != h.incompatible {
		err := d.changeHeader(ctx, func(h *header) { h.autoclear, h.incompatible = autoclear, incompatible })
		if err != nil {
			return err
		}
	}
	d.ready.done.Store(true)
	return nil
}

// markClean takes back the mark that the refcounts may be wrong. The next write sets it again.
func (d *Disk) markClean(ctx context.Context) error {
	d.ready.Lock()
	defer d.ready.Unlock()
	d.header.Lock()
	dirty := d.header.incompatible&incompatDirty != 0
	d.header.Unlock()
	if !dirty {
		return nil
	}
	d.ready.done.Store(false)
	return d.changeHeader(ctx, func(h *header) { h.incompatible &^= incompatDirty })
}

// markCorrupt marks the image as corrupt. If that fails, at least this program does not write to it any more.
func (d *Disk) markCorrupt() {
	if d.version >= 3 {
		_ = d.changeHeader(context.Background(), func(h *header) { h.incompatible |= incompatCorrupt })
	}
}
