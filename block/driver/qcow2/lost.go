// SPDX-License-Identifier: Apache-2.0

package qcow2

import (
	"context"

	"github.com/blkmirror/blkmirror/block"
)

// When a flush fails, the host may have lost what was written since the one before, and says so only once. What is dirty in memory is
// written by the next commit anyway; refcount blocks and new L2 tables that are not dirty any more are not. They are written again
// when somebody says that all data will be, too; before that no flush of such a file succeeds.

// unflushed are tables that were written since the last flush that succeeded.
type unflushed struct {
	blocks map[int]struct{}
	tables []int64
}

// ForgiveLoss has the next commit write again what may have been lost.
func (d *Disk) ForgiveLoss() { d.lost.Store(true) }

// takeUnflushed is called before a flush.
func (d *Disk) takeUnflushed() (u unflushed) {
	d.refs.Lock()
	u.blocks, d.refs.unflushed = d.refs.unflushed, map[int]struct{}{}
	d.refs.Unlock()
	d.maps.Lock()
	u.tables, d.maps.unflushed = d.maps.unflushed, nil
	d.maps.Unlock()
	return u
}

// putUnflushed is called when the flush failed.
func (d *Disk) putUnflushed(u unflushed) {
	d.refs.Lock()
	for index := range u.blocks {
		d.refs.unflushed[index] = struct{}{}
	}
	d.refs.Unlock()
	d.maps.Lock()
	d.maps.unflushed = append(u.tables, d.maps.unflushed...)
	d.maps.Unlock()
}

// rewriteLost makes dirty what may have been lost. What the caches do not have is what the file reads as.
func (d *Disk) rewriteLost(ctx context.Context) error {
	if !d.lost.Load() {
		return nil
	}
	r, m := &d.refs, &d.maps
	r.Lock()
	for index := range r.unflushed {
		b, err := r.blockLocked(ctx, index)
		if err != nil {
			r.Unlock()
			return err
		}
		if b != nil {
			r.markLocked(b)
		}
	}
	r.Unlock()
	m.Lock()
	tables := m.unflushed
	m.Unlock()
	for _, table := range tables {
		for off := table; off < table+d.cluster; off += d.options.sliceSize {
			if err := d.rewriteSlice(ctx, off); err != nil {
				return err
			}
		}
	}
	d.lost.Store(false)
	return nil
}

func (d *Disk) rewriteSlice(ctx context.Context, off int64) error {
	d.maps.Lock()
	s := d.maps.slices[off]
	if s != nil {
		d.maps.markLocked(s, 0, len(s.data))
	}
	d.maps.Unlock()
	if s != nil {
		return nil
	}
	b := block.GetBuffer(int(d.options.sliceSize))
	defer b.Release()
	if err := readPadded(ctx, d.file, b.B, off); err != nil {
		return err
	}
	return d.file.WriteAt(ctx, b.B, off, 0)
}

var _ block.LossForgiver = (*Disk)(nil)
