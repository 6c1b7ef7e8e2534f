// SPDX-License-Identifier: Apache-2.0

package qcow2

import (
	"context"
	"encoding/binary"
	"sync"
	"sync/atomic"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/rangelock"
)

// storage is what an image needs of the nodes below; edges and backends are that.
type storage interface {
	Reader
	WriteAt(ctx context.Context, p []byte, off int64, flags block.Flags) error
	WriteZeroes(ctx context.Context, off, n int64, flags block.Flags) error
	Discard(ctx context.Context, off, n int64) error
	Flush(ctx context.Context) error
	BlockStatus(ctx context.Context, off, n int64) (block.Extent, error)
	Resize(ctx context.Context, size int64) error
	Event(name string)
}

// Disk is an open image.
type Disk struct {
	geometry
	options resolved
	file    storage // metadata, and guest clusters unless there is a data file
	data    storage // guest clusters
	edges   Children
	backing atomic.Pointer[block.Edge] // nil if there is none
	size    atomic.Int64
	raw     bool // the data file is to be readable by itself

	header struct {
		sync.Mutex // held while the header is written: a change is one with its write
		header
		doubt doubt
	}
	info atomic.Pointer[Info] // what the tables of snapshots and bitmaps said
	// bitmapsInUse: the stored bitmaps are marked as in use, so the extension stays valid while the disk is written to.
	bitmapsInUse atomic.Bool

	maps    maps
	refs    refcounts
	meta    metadata
	claims  rangelock.Lock // guest clusters whose mapping somebody changes
	epochs  epochs
	commits commits
	plain   lastDecompressed
	cleaner cleaner

	tables  sync.Mutex // makes L2 tables one after the other; held while one is written
	growing sync.Mutex // held while a file below grows
	ready   struct {
		sync.Mutex // held while the image is made ready for writes
		done       atomic.Bool
		counted    bool // the refcounts are right
	}
	lost    atomic.Bool           // tables that were written before a flush failed are to be written again
	corrupt atomic.Pointer[error] // why nothing is written any more
}

// Open opens an image. It only reads: what an image needs before it may be written to, such as that refcounts of one that
// was not closed are counted anew, is done before the first write.
func Open(ctx context.Context, o Options, c Children) (*Disk, error) {
	d := &Disk{edges: c, file: c.File, data: c.File}
	h, err := readHeader(ctx, c.File)
	if err != nil {
		return nil, err
	}
	switch hasData := h.incompatible&incompatDataFile != 0; {
	case hasData && c.Data == nil:
		return nil, invalid("'data-file' is required for this image")
	case !hasData && c.Data != nil:
		return nil, invalid("'data-file' can only be set for images with an external data file")
	case hasData:
		d.data = c.Data
	}
	d.SetBacking(c.Backing)
	return d, d.open(ctx, h, o)
}

// open reads the tables that are kept in memory.
func (d *Disk) open(ctx context.Context, h *header, o Options) error {
	var err error
	switch {
	case h.crypt != 0:
		return notSupported("Encrypted images (%s) are not supported", cryptNames[h.crypt])
	case h.incompatible&incompatCorrupt != 0 && !o.ReadOnly:
		return invalid("Image is corrupt; cannot be opened read/write")
	}
	if d.options, err = o.resolve(h); err != nil {
		return err
	}
	d.geometry, d.header.header, d.raw = newGeometry(h), *h, h.autoclear&autoclearDataFileRaw != 0
	d.size.Store(int64(h.size) &^ (sectorSize - 1))
	info, err := Probe(ctx, d.file)
	if err != nil {
		return err
	}
	d.info.Store(info)
	l1, err := readTable(ctx, d.file, h.l1Offset, int64(h.l1Size), "Active L1 table")
	if err != nil {
		return err
	}
	d.maps.init(l1)
	if o.ReadOnly {
		return nil
	}
	table, err := readTable(ctx, d.file, h.refTableOffset, int64(h.refTableClusters)<<h.clusterBits/8, "Reference count table")
	if err != nil {
		return err
	}
	d.refs.init(d, table)
	return d.meta.init(d, info)
}

// readTable reads a table of 64-bit numbers, which must lie within the file; its last cluster may be cut short.
func readTable(ctx context.Context, r Reader, off uint64, entries int64, what string) ([]uint64, error) {
	if entries == 0 {
		return nil, nil
	}
	if int64(off) >= r.Size() || int64(off) > (r.Size()+1<<maxClusterBits)-entries*8 {
		return nil, invalid("%s at %d with %d entries lies outside of the file of %d bytes", what, off, entries, r.Size())
	}
	b := make([]byte, entries*8)
	if err := readPadded(ctx, r, b, int64(off)); err != nil {
		return nil, err
	}
	table := make([]uint64, entries)
	for i := range table {
		table[i] = binary.BigEndian.Uint64(b[i*8:])
	}
	return table, nil
}

// SetBacking exchanges the backing node; nil for none. No request is under way.
func (d *Disk) SetBacking(b *block.Edge) { d.backing.Store(b) }

// Size is the length of the disk in bytes.
func (d *Disk) Size() int64 { return d.size.Load() }

// Limits tell the cluster size; requests of any alignment are taken.
func (d *Disk) Limits() block.Limits { return block.Limits{Granularity: d.cluster} }

// Withholds tells that tables are in memory until a flush.
func (d *Disk) Withholds() {}

// CanZeroUnmap says whether writes of zeroes can free clusters; version 2 has no zero clusters.
func (d *Disk) CanZeroUnmap() bool { return d.version >= 3 }

// Info describes the image as it is now.
func (d *Disk) Info() *Info {
	tables := d.info.Load()
	d.header.Lock()
	defer d.header.Unlock()
	info := d.header.info()
	info.Snapshots, info.Bitmaps, info.snapshotBytes = tables.Snapshots, tables.Bitmaps, tables.snapshotBytes
	return info
}

// AllocatedBytes is what the image and its data file take on the host, without the backing chain.
func (d *Disk) AllocatedBytes() (int64, error) {
	var sum int64
	for _, e := range []*block.Edge{d.edges.File, d.edges.Data} {
		if e == nil {
			continue
		}
		if bytes, known := e.Node().AllocatedBytes(); known {
			sum += bytes
		} else {
			return 0, block.NotSupported
		}
	}
	return sum, nil
}

// ChildPermissions: the files below belong to the image alone, because its metadata does not bear other writers; metadata is
// written whatever the users of the disk do. The backing node is only read. It may change while nobody expects sense from what
// is read of the disk, as between the two ends of a commit.
func (d *Disk) ChildPermissions(child string, need, share block.Perm) (childNeed, childShare block.Perm) {
	if child == "backing" {
		childShare = block.PermConsistentRead | block.PermWriteUnchanged
		if share&block.PermWrite != 0 && need&block.PermConsistentRead == 0 {
			childShare |= block.PermWrite | block.PermResize
		}
		return need & block.PermConsistentRead, childShare
	}
	childNeed = block.PermConsistentRead
	if !d.options.readOnly {
		childNeed |= block.PermWrite | block.PermResize
	}
	return childNeed, (share | block.PermWriteUnchanged) &^ (block.PermWrite | block.PermResize)
}

var (
	_ block.Driver         = (*Disk)(nil)
	_ block.StatusReporter = (*Disk)(nil)
	_ block.Limiter        = (*Disk)(nil)
	_ block.Withholder     = (*Disk)(nil)
	_ block.ChildPermitter = (*Disk)(nil)
	_ block.BackingSetter  = (*Disk)(nil)

	_ block.AllocationReporter = (*Disk)(nil)
)
