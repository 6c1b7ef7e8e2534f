// SPDX-License-Identifier: Apache-2.0

package qcow2

import (
	"context"

	"github.com/blkmirror/blkmirror/block"
)

// WriteZeroes makes whole clusters, or subclusters, zero by a note in the tables. What is less than one is written as zeroes unless
// the rest of it reads as zeroes anyway.
func (d *Disk) WriteZeroes(ctx context.Context, off, n int64, flags block.Flags) error {
	if d.version < 3 {
		return block.NotSupported // there are no zero clusters
	}
	if err := d.prepare(ctx); err != nil {
		return err
	}
	if err := d.zero(ctx, off, n, flags); err != nil {
		return err
	}
	return d.finish(ctx, flags)
}

func (d *Disk) zero(ctx context.Context, off, n int64, flags block.Flags) error {
	e := d.epochs.enter()
	defer d.epochs.leave(e)
	if d.raw { // the data file alone must tell
		if err := d.growData(ctx, off+n); err != nil {
			return err
		}
		return d.data.WriteZeroes(ctx, off, n, flags&^block.FUA)
	}
	end := off + n
	if end == d.Size() { // behind the end of the disk nothing is lost
		end = d.up(end)
	}
	first, last := min(d.up(off), end), max(d.down(end), off)
	if first > last { // inside of one cluster
		return d.zeroInCluster(ctx, off, end, flags)
	}
	if err := d.zeroInCluster(ctx, off, first, flags); err != nil {
		return err
	}
	if err := d.zeroWhole(ctx, first, last, flags); err != nil {
		return err
	}
	return d.zeroInCluster(ctx, last, end, flags)
}

// zeroWhole makes whole subclusters zero.
func (d *Disk) zeroWhole(ctx context.Context, off, end int64, flags block.Flags) error {
	unmap := flags&block.MayUnmap != 0
	return d.remap(ctx, off, end, unmap, func(mask uint32, e *entry) bool { return d.zeroEntry(e, mask, unmap) })
}

// zeroInCluster makes a part of a cluster zero.
func (d *Disk) zeroInCluster(ctx context.Context, off, end int64, flags block.Flags) error {
	if off >= end {
		return nil
	}
	first, last := (off+d.sub-1)&^(d.sub-1), end&^(d.sub-1)
	r, err := d.lookup(ctx, off, end-off)
	if err != nil {
		return err
	}
	if first >= last || r.kind == compressed { // which has no subclusters, and none of them becomes a compressed one
		return d.zeroPart(ctx, off, end, flags)
	}
	if err := d.zeroPart(ctx, off, first, flags); err != nil {
		return err
	}
	if err := d.zeroWhole(ctx, first, last, flags); err != nil {
		return err
	}
	return d.zeroPart(ctx, last, end, flags)
}

// zeroEntry makes subclusters of an entry zero; the whole cluster gives up its place if it may.
func (d *Disk) zeroEntry(e *entry, mask uint32, unmap bool) bool {
	old := *e
	switch {
	case e.compressed, mask == d.allSubs && (unmap && !d.options.keepOnDiscard || !e.copied):
		*e = entry{host: none, zero: d.allSubs}
	default:
		e.allocated, e.zero = e.allocated&^mask, e.zero|mask
	}
	return *e != old
}

// remap changes the entries of a range of whole subclusters. change gets an entry and the subclusters of it that the range
// covers, and says whether it changed the entry. unmap says that the file may be told of what is not needed any more.
func (d *Disk) remap(ctx context.Context, off, end int64, unmap bool, change func(mask uint32, e *entry) bool) error {
	for off < end {
		stop := min(end, d.sliceEnd(off))
		if err := d.remapSlice(ctx, off, stop, unmap, change); err != nil {
			return err
		}
		off = stop
	}
	return nil
}

func (d *Disk) remapSlice(ctx context.Context, off, end int64, unmap bool, change func(mask uint32, e *entry) bool) error {
	from, to := d.down(off), d.up(end)
	claim := d.claims.Lock(from, to-from)
	defer d.claims.Unlock(claim)
	changes, err := d.wouldChange(ctx, off, end, change)
	if err != nil || !changes {
		return err
	}
	if err := d.ownTable(ctx, off); err != nil {
		return err
	}
	kept, err := d.changeEntries(ctx, off, end, change)
	if err != nil || !unmap || !d.options.discardRequest {
		return err
	}
	for _, f := range kept { // under the claim, so that nobody writes there again before
		if err := d.discardData(ctx, f.off, f.off+f.n); err != nil {
			return err
		}
	}
	return nil
}

// changeEntries is the change of the tables. It returns the places that lost their data and are not free: clusters of a data
// file, and those that remain allocated.
func (d *Disk) changeEntries(ctx context.Context, off, end int64, change func(mask uint32, e *entry) bool) (kept []freeRange, err error) {
	s, err := d.lockSlice(ctx, off)
	if err != nil {
		return nil, err
	}
	defer d.maps.Unlock()
	return kept, d.eachEntry(s, off, end, func(guest int64, at int, mask uint32, e entry) bool {
		old := e
		if !change(mask, &e) {
			return true
		}
		switch {
		case old.host == none || old.compressed:
			d.freeEntryLocked(&old, freedRequest)
		case e.host == none && d.external, e.host != none && d.options.keepOnDiscard && e.zero == d.allSubs:
			kept = addRange(kept, old.host, d.cluster, freedRequest)
		case e.host == none:
			d.freeEntryLocked(&old, freedRequest)
		}
		d.writeEntry(s.data[at:], e)
		d.maps.markLocked(s, at, at+int(d.entry))
		return true
	})
}

// wouldChange says whether change has something to do.
func (d *Disk) wouldChange(ctx context.Context, off, end int64, change func(mask uint32, e *entry) bool) (bool, error) {
	s, err := d.lockSlice(ctx, off)
	if err != nil {
		return false, err
	}
	defer d.maps.Unlock()
	if s == nil {
		return change(d.allSubs, &entry{host: none}), nil
	}
	found := false
	err = d.eachEntry(s, off, end, func(guest int64, _ int, mask uint32, e entry) bool {
		found = change(mask, &e)
		return !found
	})
	return found, err
}

// eachEntry calls f for the entries of a range in a slice until it says no. The lock of maps is held.
func (d *Disk) eachEntry(s *slice, off, end int64, f func(guest int64, at int, mask uint32, e entry) bool) error {
	at, _ := d.position(off)
	for guest := d.down(off); guest < end; at, guest = at+int(d.entry), guest+d.cluster {
		e, err := d.readEntry(s.data[at:], guest)
		if err != nil {
			return d.badEntryLocked(guest, s.off+int64(at), err)
		}
		if !f(guest, at, d.mask(max(off-guest, 0), min(end-guest, d.cluster)), e) {
			return nil
		}
	}
	return nil
}

// zeroPart writes zeroes to a part of one subcluster, or of two next to each other.
func (d *Disk) zeroPart(ctx context.Context, off, end int64, flags block.Flags) error {
	for off < end {
		stop := min(end, off&^(d.sub-1)+d.sub)
		if err := d.zeroPartOne(ctx, off, stop, flags); err != nil {
			return err
		}
		off = stop
	}
	return nil
}

func (d *Disk) zeroPartOne(ctx context.Context, off, end int64, flags block.Flags) error {
	r, err := d.lookup(ctx, off, end-off)
	switch {
	case err != nil:
		return err
	case r.kind == zeroes:
		return nil
	case r.kind == data && r.copied:
		if err := d.mayWriteData(ctx, r.host, r.n); err != nil {
			return err
		}
		return d.data.WriteZeroes(ctx, r.host, r.n, flags&(block.MayUnmap|block.NoFallback))
	case r.kind == unallocated:
		done, err := d.zeroAround(ctx, off, end)
		if err != nil || done {
			return err
		}
	}
	if flags&block.NoFallback != 0 {
		return block.NotSupported
	}
	b := block.GetBuffer(int(end - off))
	defer b.Release()
	clear(b.B)
	return d.writeUnder(ctx, b.B, off)
}

// zeroAround makes a whole subcluster zero that nothing in the image speaks of, if all of it but the given part reads as zeroes.
func (d *Disk) zeroAround(ctx context.Context, off, end int64) (bool, error) {
	guest, from := d.down(off), off&^(d.sub-1)
	claim := d.claims.Lock(guest, d.cluster)
	defer d.claims.Unlock(claim)
	r, err := d.lookup(ctx, from, d.sub)
	if err != nil || r.kind != unallocated || r.n < d.sub {
		return false, err
	}
	if !d.readsZero(ctx, from, off-from) || !d.readsZero(ctx, end, from+d.sub-end) {
		return false, nil
	}
	if err := d.ownTable(ctx, guest); err != nil {
		return false, err
	}
	s, err := d.lockSlice(ctx, guest)
	if err != nil {
		return false, err
	}
	defer d.maps.Unlock()
	return true, d.eachEntry(s, from, from+d.sub, func(_ int64, at int, mask uint32, e entry) bool {
		e.zero |= mask
		d.writeEntry(s.data[at:], e)
		d.maps.markLocked(s, at, at+int(d.entry))
		return true
	})
}

// Discard frees whole clusters. They read as zeroes afterwards; version 2 can say that only without a backing node.
func (d *Disk) Discard(ctx context.Context, off, n int64) error {
	backed := d.backing.Load() != nil
	if d.version < 3 && backed {
		return block.NotSupported
	}
	if err := d.prepare(ctx); err != nil {
		return err
	}
	if err := d.discard(ctx, off, n, backed); err != nil {
		return err
	}
	return d.finish(ctx, 0)
}

func (d *Disk) discard(ctx context.Context, off, n int64, backed bool) error {
	e := d.epochs.enter()
	defer d.epochs.leave(e)
	end := off + n
	if end < d.Size() {
		end = d.down(end)
	} else {
		end = d.up(end)
	}
	if off = d.up(off); off >= end {
		return nil
	}
	if d.raw {
		return d.discardData(ctx, off, end)
	}
	return d.remap(ctx, off, end, true, func(mask uint32, e *entry) bool {
		switch {
		case e.host == none && (e.zero == d.allSubs || e.zero == 0 && !backed):
			return false
		case d.options.keepOnDiscard && e.copied && !e.compressed && e.host != none:
			if e.zero == d.allSubs {
				return false
			}
			*e = entry{host: e.host, copied: true, zero: d.allSubs}
		case d.version < 3:
			*e = entry{host: none}
		default:
			*e = entry{host: none, zero: d.allSubs}
		}
		return true
	})
}

// discardData passes a discard on to the file with guest clusters.
func (d *Disk) discardData(ctx context.Context, off, end int64) error {
	if end = min(end, d.data.Size()); end <= off || !d.options.discardRequest {
		return nil
	}
	return d.data.Discard(ctx, off, end-off)
}

// growData makes the data file reach to end.
func (d *Disk) growData(ctx context.Context, end int64) error {
	if end <= d.data.Size() {
		return nil
	}
	return d.grow(ctx, d.data, end)
}

var (
	_ block.ZeroWriter   = (*Disk)(nil)
	_ block.ZeroUnmapper = (*Disk)(nil)
	_ block.Discarder    = (*Disk)(nil)
	_ block.Settler      = (*Disk)(nil)
)
