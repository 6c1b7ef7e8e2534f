// SPDX-License-Identifier: Apache-2.0

package qcow2

import (
	"context"

	"github.com/blkmirror/blkmirror/block"
)

// ReadAt fills p from the clusters of the image, and from the backing node where the image has none.
func (d *Disk) ReadAt(ctx context.Context, p []byte, off int64) error {
	e := d.epochs.enter()
	defer d.epochs.leave(e)
	return d.read(ctx, p, off)
}

func (d *Disk) read(ctx context.Context, p []byte, off int64) error {
	for len(p) > 0 {
		r, err := d.lookup(ctx, off, int64(len(p)))
		if err != nil {
			return err
		}
		part := p[:r.n]
		switch r.kind {
		case data:
			d.data.Event("read_aio")
			err = readPadded(ctx, d.data, part, r.host)
		case compressed:
			err = d.readCompressed(ctx, part, off&(d.cluster-1), &r.entry)
		case zeroes:
			clear(part)
		case unallocated:
			err = d.readBacking(ctx, part, off)
		}
		if err != nil {
			return err
		}
		p, off = p[r.n:], off+r.n
	}
	return nil
}

// readBacking reads what shows through. Behind the end of the backing node there are zeroes.
func (d *Disk) readBacking(ctx context.Context, p []byte, off int64) error {
	b := d.backing.Load()
	if b == nil {
		clear(p)
		return nil
	}
	d.file.Event("read_backing_aio")
	return readPadded(ctx, b, p, off)
}

// maxStatusRuns bounds the work for one answer: so many runs, which lie in one slice of an L2 table each.
const maxStatusRuns = 64

// BlockStatus tells data from zeroes, in the whole chain, and what this layer decides.
func (d *Disk) BlockStatus(ctx context.Context, off, n int64) (block.Extent, error) {
	e := d.epochs.enter()
	defer d.epochs.leave(e)
	first, whole, err := d.status(ctx, off, n)
	if err != nil {
		return block.Extent{}, err
	}
	for range maxStatusRuns {
		if first.Len >= n || !whole {
			break
		}
		var next block.Extent
		next, whole, err = d.status(ctx, off+first.Len, n-first.Len)
		if err != nil || next.Status != first.Status {
			break // the error will be told to whoever asks about that place
		}
		first.Len += next.Len
	}
	return first, nil
}

// status is BlockStatus for one run. whole tells that the answer is about all of the run. Where the backing node gave less, it is
// not asked on: each layer of a chain would double the questions to the next.
func (d *Disk) status(ctx context.Context, off, n int64) (e block.Extent, whole bool, err error) {
	r, err := d.lookup(ctx, off, n)
	if err != nil {
		return block.Extent{}, false, err
	}
	switch r.kind {
	case data, compressed:
		return block.Extent{Len: r.n, Status: block.StatusData | block.StatusAllocated}, true, nil
	case zeroes:
		return block.Extent{Len: r.n, Status: block.StatusZero | block.StatusAllocated}, true, nil
	}
	b := d.backing.Load()
	if b == nil || off >= b.Size() {
		return block.Extent{Len: r.n, Status: block.StatusZero}, true, nil
	}
	below, err := b.BlockStatus(ctx, off, min(r.n, b.Size()-off))
	below.Status &^= block.StatusAllocated
	return below, below.Len == r.n, err
}

// Space tells which clusters take no place in the image: those that are zero or unallocated, unless the backing node shows
// through.
func (d *Disk) Space(ctx context.Context, off, n int64) (length int64, taken bool, err error) {
	e := d.epochs.enter()
	defer d.epochs.leave(e)
	s, err := d.lockSlice(ctx, off)
	if err != nil {
		return 0, false, err
	}
	defer d.maps.Unlock()
	backed := d.backing.Load() != nil
	if s == nil {
		return d.emptyLocked(off, n), backed, nil
	}
	n = min(n, d.sliceEnd(off)-off)
	at, _ := d.position(off)
	for guest := d.down(off); length < n; at, guest = at+int(d.entry), guest+d.cluster {
		e, err := d.readEntry(s.data[at:], guest)
		if err != nil {
			return 0, false, d.badEntryLocked(guest, s.off+int64(at), err)
		}
		here := e.host != none || backed && e.zero != d.allSubs
		if length > 0 && here != taken {
			break
		}
		taken, length = here, guest+d.cluster-off
	}
	return min(length, n), taken, nil
}

var _ block.SpaceReporter = (*Disk)(nil)
