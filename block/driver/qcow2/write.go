// SPDX-License-Identifier: Apache-2.0

package qcow2

import (
	"context"

	"github.com/blkmirror/blkmirror/block"
)

// WriteAt writes p. Clusters that the image has are written in place, others are allocated; the tables change in memory, and
// reach the file with the next commit.
func (d *Disk) WriteAt(ctx context.Context, p []byte, off int64, flags block.Flags) error {
	if err := d.prepare(ctx); err != nil {
		return err
	}
	if err := d.write(ctx, p, off); err != nil {
		return err
	}
	return d.finish(ctx, flags)
}

// finish is the end of every request that changes something: outside of its epoch, because a commit may wait for that.
func (d *Disk) finish(ctx context.Context, flags block.Flags) error {
	if flags&block.FUA == 0 {
		d.maps.Lock()
		many := d.maps.freed.many()
		d.maps.Unlock()
		if !many {
			return nil
		}
	}
	return d.sync(ctx)
}

func (d *Disk) write(ctx context.Context, p []byte, off int64) error {
	e := d.epochs.enter()
	defer d.epochs.leave(e)
	return d.writeUnder(ctx, p, off)
}

// writeUnder is write for whoever is in an epoch.
func (d *Disk) writeUnder(ctx context.Context, p []byte, off int64) error {
	for len(p) > 0 {
		r, err := d.lookup(ctx, off, int64(len(p)))
		if err != nil {
			return err
		}
		n := r.n
		if r.kind == data && r.copied {
			d.file.Event("write_aio")
			err = d.writeData(ctx, p[:n], r.host)
		} else {
			n, err = d.allocate(ctx, p, off)
		}
		if err != nil {
			return err
		}
		p, off = p[n:], off+n
	}
	return nil
}

// mayWriteData makes sure that a range of host clusters can be written to and is no metadata.
func (d *Disk) mayWriteData(ctx context.Context, host, n int64) error {
	if !d.external {
		if err := d.checkOverlap(host, n); err != nil {
			return err
		}
		if d.down(host) >= d.file.Size() {
			return d.corrupted(host, n, "the cluster at %#x lies outside of the file", d.down(host))
		}
	}
	if host+n > d.data.Size() {
		return d.grow(ctx, d.data, host+n)
	}
	return nil
}

// writeData writes to where a guest cluster lies.
func (d *Disk) writeData(ctx context.Context, p []byte, host int64) error {
	if err := d.mayWriteData(ctx, host, int64(len(p))); err != nil {
		return err
	}
	return d.data.WriteAt(ctx, p, host, 0)
}

// extent is a row of guest clusters that lie next to each other in the file, and a write into them.
type extent struct {
	guest    int64 // of the first cluster
	host     int64
	clusters int64
	fresh    bool  // new, and reads as zeroes
	own      bool  // new, and nothing refers to it yet
	from, to int64 // what is written, bytes of the disk

	first, last entry // what the clusters at the edges were, or the only one
}

// allocate writes the first bytes of p to clusters that cannot be written in place, and returns how many it wrote.
func (d *Disk) allocate(ctx context.Context, p []byte, off int64) (int64, error) {
	end := min(off+int64(len(p)), d.sliceEnd(off))
	from, to := d.down(off), d.up(end)
	claim := d.claims.Lock(from, to-from)
	defer d.claims.Unlock(claim)
	if err := d.ownTable(ctx, off); err != nil {
		return 0, err
	}
	x, err := d.plan(ctx, off, end)
	if err != nil || x.clusters == 0 { // somebody else has allocated it
		return 0, err
	}
	if err := d.place(ctx, &x); err != nil {
		return 0, err
	}
	x.to = min(end, x.guest+x.clusters<<d.clusterBits)
	if x.to < end { // the last cluster is a whole one
		x.last = entry{host: none}
	}
	n := x.to - x.from
	d.file.Event("write_aio")
	if err := d.fill(ctx, &x, p[:n]); err != nil {
		if !block.IsSuspect(err) { // or the write may yet be carried out, and nobody else must get the clusters
			d.giveBack(ctx, &x)
		}
		return 0, err
	}
	return n, d.enterExtent(ctx, &x)
}

// plan finds out how many clusters from off to end are to be treated alike: all to be allocated, or all of them with a place that
// may be written to. It finds none if the first can be written in place.
func (d *Disk) plan(ctx context.Context, off, end int64) (extent, error) {
	s, err := d.lockSlice(ctx, off)
	if err != nil {
		return extent{}, err
	}
	defer d.maps.Unlock()
	x := extent{guest: d.down(off), host: none, from: off}
	at, _ := d.position(off)
	for guest := x.guest; guest < end; at, guest = at+int(d.entry), guest+d.cluster {
		e, err := d.readEntry(s.data[at:], guest)
		if err != nil {
			if x.clusters > 0 {
				break
			}
			return x, d.badEntryLocked(guest, s.off+int64(at), err)
		}
		touched := d.mask(max(off-guest, 0), min(end-guest, d.cluster))
		placed := e.host != none && e.copied && !e.compressed
		if placed && e.allocated&touched == touched {
			break
		}
		switch {
		case x.clusters == 0:
			x.first = e
			if placed {
				x.host = e.host
			}
		case placed != (x.host != none) || placed && e.host != x.host+x.clusters<<d.clusterBits:
			return x, nil
		}
		x.last = e
		x.clusters++
	}
	return x, nil
}

// place finds a place for the clusters of x, perhaps for fewer of them.
func (d *Disk) place(ctx context.Context, x *extent) error {
	switch {
	case x.host != none:
		return nil
	case d.external:
		x.host = x.guest
		return nil
	}
	p, err := d.refs.alloc(ctx, x.clusters<<d.clusterBits)
	if err != nil {
		return err
	}
	x.host, x.clusters, x.fresh, x.own = p.off, p.n>>d.clusterBits, p.fresh, true
	return nil
}

// giveBack frees clusters that nothing refers to.
func (d *Disk) giveBack(ctx context.Context, x *extent) {
	if x.own {
		d.free(ctx, []freeRange{{x.host, x.clusters << d.clusterBits, freedOther}})
	}
}

// moves says whether data of the old cluster must go with it to the new one.
func (x *extent) moves(e *entry) bool { return x.own && (e.compressed || e.allocated != 0) }

// around is the part of a cluster that must be written so that from to to, bytes of it, can be: what the write does not fill of
// it comes from what the cluster reads as.
func (d *Disk) around(x *extent, e *entry, from, to int64) (lo, hi int64) {
	if e.compressed {
		return 0, d.cluster
	}
	lo, hi = from&^(d.sub-1), (to+d.sub-1)&^(d.sub-1)
	if x.moves(e) {
		for i := range int64(d.subs) {
			if e.allocated>>i&1 != 0 {
				lo, hi = min(lo, i<<d.subBits), max(hi, (i+1)<<d.subBits)
			}
		}
		return lo, hi
	}
	if e.classify(uint32(from>>d.subBits)) == data {
		lo = from
	}
	if e.classify(uint32((to-1)>>d.subBits)) == data {
		hi = to
	}
	return lo, hi
}

// maxMerged is how much is written at most in one piece with what surrounds it in its clusters. The pieces are copied together,
// which for more costs more than a further write.
const maxMerged = 256 << 10

// fill writes p into the clusters of x, and what must surround it.
func (d *Disk) fill(ctx context.Context, x *extent, p []byte) error {
	end := x.guest + x.clusters<<d.clusterBits
	lo, _ := d.around(x, &x.first, x.from-x.guest, min(x.to-x.guest, d.cluster))
	lo += x.guest
	last := end - d.cluster
	_, hi := d.around(x, &x.last, max(x.from-last, 0), x.to-last)
	hi += last
	host := x.host - x.guest // place in the file is place on the disk plus this
	if err := d.mayWriteData(ctx, host+lo, hi-lo); err != nil {
		return err
	}
	if lo < x.from && d.readsZero(ctx, lo, x.from-lo) {
		done, err := d.zeroEdge(ctx, x, host+lo, x.from-lo)
		if err != nil {
			return err
		}
		if done {
			lo = x.from
		}
	}
	if hi > x.to && d.readsZero(ctx, x.to, hi-x.to) {
		done, err := d.zeroEdge(ctx, x, host+x.to, hi-x.to)
		if err != nil {
			return err
		}
		if done {
			hi = x.to
		}
	}
	if lo == x.from && hi == x.to {
		return d.data.WriteAt(ctx, p, host+x.from, 0)
	}
	if hi-lo <= maxMerged || hi-lo <= d.cluster {
		b := block.GetBuffer(int(hi - lo))
		defer b.Release()
		d.file.Event("cow_read")
		if err := d.read(ctx, b.B[:x.from-lo], lo); err != nil {
			return err
		}
		copy(b.B[x.from-lo:], p)
		if err := d.read(ctx, b.B[x.to-lo:], x.to); err != nil {
			return err
		}
		d.file.Event("cow_write")
		return d.data.WriteAt(ctx, b.B, host+lo, 0)
	}
	for _, edge := range [2][2]int64{{lo, x.from}, {x.to, hi}} {
		if err := d.copyEdge(ctx, host, edge[0], edge[1]); err != nil {
			return err
		}
	}
	return d.data.WriteAt(ctx, p, host+x.from, 0)
}

// zeroEdge sees to it that n bytes of the file, which surround a write, are zero, if that takes no data.
func (d *Disk) zeroEdge(ctx context.Context, x *extent, off, n int64) (done bool, err error) {
	switch {
	case x.fresh:
		return true, nil
	case n <= smallZero: // cheaper as part of the write
		return false, nil
	}
	err = d.data.WriteZeroes(ctx, off, n, block.NoFallback)
	if err != nil && block.KindOf(err) == block.KindNotSupported {
		return false, nil
	}
	return err == nil, err
}

// smallZero is how many zeroes are written rather than asked for.
const smallZero = 16 << 10

// copyEdge copies what a part of the disk reads as to its new place.
func (d *Disk) copyEdge(ctx context.Context, host, from, to int64) error {
	if from == to {
		return nil
	}
	b := block.GetBuffer(int(to - from))
	defer b.Release()
	d.file.Event("cow_read")
	if err := d.read(ctx, b.B, from); err != nil {
		return err
	}
	d.file.Event("cow_write")
	return d.data.WriteAt(ctx, b.B, host+from, 0)
}

// readsZero says whether a range is known to read as zeroes.
func (d *Disk) readsZero(ctx context.Context, off, n int64) bool {
	for n > 0 {
		e, _, err := d.status(ctx, off, n)
		if err != nil || e.Status&block.StatusZero == 0 {
			return false
		}
		off, n = off+e.Len, n-e.Len
	}
	return true
}

// enterExtent makes the tables lead to the clusters of x, and frees those that they led to.
func (d *Disk) enterExtent(ctx context.Context, x *extent) error {
	s, err := d.lockSlice(ctx, x.guest)
	if err != nil {
		d.giveBack(ctx, x)
		return err
	}
	defer d.maps.Unlock()
	begin, _ := d.position(x.guest)
	d.maps.markLocked(s, begin, begin+int(x.clusters*d.entry))
	for i := range x.clusters {
		guest, at := x.guest+i<<d.clusterBits, begin+int(i*d.entry)
		e, err := d.readEntry(s.data[at:], guest)
		if err != nil { // cannot be: plan has read it
			return d.badEntryLocked(guest, s.off+int64(at), err)
		}
		touched := d.mask(max(x.from-guest, 0), min(x.to-guest, d.cluster))
		if e.compressed {
			touched = d.allSubs
		}
		if x.own {
			d.freeEntryLocked(&e, freedOther)
		}
		e.host, e.copied, e.compressed = x.host+i<<d.clusterBits, true, false
		e.allocated, e.zero = e.allocated|touched, e.zero&^touched
		d.writeEntry(s.data[at:], e)
	}
	return nil
}

// ownTable makes sure that there is an L2 table for guest, and that nothing else refers to it.
func (d *Disk) ownTable(ctx context.Context, guest int64) error {
	index, m := d.l1Index(guest), &d.maps
	owned := func() (l1 uint64, owned bool) {
		m.Lock()
		defer m.Unlock()
		return m.l1[index], m.l1[index]&flagCopied != 0 && m.l1[index]&offsetMask != 0
	}
	if _, ok := owned(); ok {
		return nil
	}
	d.tables.Lock()
	defer d.tables.Unlock()
	l1, ok := owned()
	if ok {
		return nil
	}
	old := int64(l1 & offsetMask)
	if old != 0 {
		if err := d.checkTable(old, "L2 table"); err != nil {
			return err
		}
	}
	p, err := d.refs.alloc(ctx, d.cluster)
	if err != nil {
		return err
	}
	d.file.Event("l2_alloc_write")
	if err := d.newTable(ctx, old, p); err != nil {
		d.free(ctx, []freeRange{{p.off, d.cluster, freedOther}})
		return err
	}
	d.meta.add(p.off)
	m.Lock()
	defer m.Unlock()
	m.l1[index] = uint64(p.off) | flagCopied
	m.dirtyL1[index] = struct{}{}
	m.unflushed = append(m.unflushed, p.off)
	if old != 0 {
		m.dropLocked(old, d.cluster, d.options.sliceSize)
		m.freed.add(old, d.cluster, freedOther)
	}
	return nil
}

// newTable writes an L2 table that is a copy of the old one, or empty. What changes in it later may get into the file in any order
// with the L1 entry that leads to it: this does not, because a commit flushes in between.
func (d *Disk) newTable(ctx context.Context, old int64, p place) error {
	if old == 0 {
		if p.fresh {
			return nil
		}
		return d.file.WriteZeroes(ctx, p.off, d.cluster, 0)
	}
	b := block.GetBuffer(int(d.cluster))
	defer b.Release()
	if err := readPadded(ctx, d.file, b.B, old); err != nil {
		return err
	}
	return d.file.WriteAt(ctx, b.B, p.off, 0)
}
