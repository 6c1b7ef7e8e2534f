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
	b := h.encodeFixed()
	if err := d.file.WriteAt(ctx, b, 0, 0); err != nil {
		return err
	}
	if err := d.file.Flush(ctx); err != nil {
		return err
	}
	d.header.header = h
	return nil
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
	d.header.Lock()
	h := d.header.header
	d.header.Unlock()
	if h.incompatible&incompatDirty != 0 && !d.ready.counted {
		if err := d.recount(ctx); err != nil {
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
