// SPDX-License-Identifier: Apache-2.0

package qcow2

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/bits"
	"slices"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/bitmap"
)

// Names in this file are those of the section "Bitmaps" of the specification. A bitmap is a table of the places of its data, a
// cluster each; the bitmap directory lists the tables, and the header extension leads to the directory as long as its autoclear
// bit is set.

// Flags of a bitmap directory entry.
const (
	bitmapInUse = 1 << iota
	bitmapAuto

	bitmapFlagsKnown = 1<<iota - 1
)

const (
	bitmapTypeDirty = 1
	bitmapEntryLen  = 24 // without extra data and the name
	maxBitmapName   = 1023
	minBitmapShift  = 9
	maxBitmapShift  = 31
	// maxBitmapTable is how many entries a bitmap table may have.
	maxBitmapTable = 8 << 20 / 8

	bitmapAllOnes    = 1 // in a table entry without an offset
	bitmapOffsetMask = 0x00fffffffffffe00
)

// StoredBitmaps lists the bitmaps of the image.
func (d *Disk) StoredBitmaps() []block.StoredBitmap {
	var list []block.StoredBitmap
	for _, b := range d.info.Load().Bitmaps {
		list = append(list, block.StoredBitmap{Name: b.Name, Granularity: b.Granularity, Recording: b.Auto, Inconsistent: b.InUse})
	}
	return list
}

// CanKeepBitmap says what stands against storing one more bitmap.
func (d *Disk) CanKeepBitmap(b block.BitmapInfo, n int) error {
	shift := bits.TrailingZeros64(uint64(b.Granularity))
	switch {
	case d.version < 3:
		return notSupported("Cannot store dirty bitmaps in qcow2 v2 files")
	case len(b.Name) > maxBitmapName:
		return invalid("The name of a bitmap in a qcow2 image has at most %d bytes, not %d", maxBitmapName, len(b.Name))
	case shift < minBitmapShift || shift > maxBitmapShift:
		return invalid("The granularity of a bitmap in a qcow2 image is from %d to %d, not %d", 1<<minBitmapShift, int64(1)<<maxBitmapShift,
			b.Granularity)
	case n >= maxBitmaps:
		return invalid("A qcow2 image has at most %d bitmaps", maxBitmaps)
	case d.bitmapTableLen(b.Granularity) > maxBitmapTable:
		return invalid("Too many bits for a qcow2 image with clusters of %d bytes: granularity %d on a disk of %d bytes", d.cluster,
			b.Granularity, d.Size())
	}
	d.header.Lock()
	h := d.header.header
	d.header.Unlock()
	h.extensions = slices.Clone(h.extensions)
	h.setExtension(extBitmaps, make([]byte, 24))
	_, err := h.encode()
	return err
}

// bitmapBytes is how many bytes the bits of a bitmap take.
func (d *Disk) bitmapBytes(granularity int64) int64 {
	return ((d.Size()+granularity-1)/granularity + 7) / 8
}

func (d *Disk) bitmapTableLen(granularity int64) int64 {
	return (d.bitmapBytes(granularity) + d.cluster - 1) >> d.clusterBits
}

// findBitmap finds a stored bitmap by its name.
func (d *Disk) findBitmap(name string) *BitmapInfo {
	list := d.info.Load().Bitmaps
	if i := slices.IndexFunc(list, func(b BitmapInfo) bool { return b.Name == name }); i >= 0 {
		return &list[i]
	}
	return nil
}

// ReadBitmap reads a stored bitmap.
func (d *Disk) ReadBitmap(ctx context.Context, name string, into *bitmap.Bitmap) error {
	b := d.findBitmap(name)
	switch {
	case b == nil:
		return invalid("The image has no bitmap '%s'", name)
	case b.kind != bitmapTypeDirty || b.flags&^bitmapFlagsKnown != 0:
		return notSupported("The bitmap is of unknown type %d or has unknown flags %#x", b.kind, b.flags)
	case b.tableEntries != d.bitmapTableLen(b.Granularity):
		return invalid("The bitmap table has %d entries; the disk of %d bytes needs %d", b.tableEntries, d.Size(), d.bitmapTableLen(b.Granularity))
	}
	table, err := d.bitmapTable(ctx, b)
	if err != nil {
		return err
	}
	data := make([]byte, d.cluster)
	for i, e := range table {
		first := int64(i) << d.clusterBits * 8
		switch off := int64(e & bitmapOffsetMask); {
		case off != 0:
			if err := readPadded(ctx, d.file, data, off); err != nil {
				return err
			}
			into.MergeBytes(first, data)
		case e == bitmapAllOnes:
			into.Set(bitmap.Chunks{First: first, End: min(first+d.cluster*8, into.All().End)})
		}
	}
	return nil
}

// bitmapTable reads and checks the table of a bitmap.
func (d *Disk) bitmapTable(ctx context.Context, b *BitmapInfo) ([]uint64, error) {
	if b.tableEntries > maxBitmapTable {
		return nil, invalid("The table of bitmap '%s' has %d entries, %d are the most", b.Name, b.tableEntries, maxBitmapTable)
	}
	table, err := readTable(ctx, d.file, uint64(b.tableOffset), b.tableEntries, "The bitmap table")
	if err != nil {
		return nil, err
	}
	for i, e := range table {
		off := int64(e & bitmapOffsetMask)
		if e&^(bitmapOffsetMask|bitmapAllOnes) != 0 || off != 0 && e&bitmapAllOnes != 0 || off&(d.cluster-1) != 0 || off >= d.file.Size() {
			return nil, invalid("Entry %d of the bitmap table is invalid: %#x", i, e)
		}
	}
	return table, nil
}

// UseBitmaps marks the stored bitmaps as in use. From then on writes leave the extension valid.
func (d *Disk) UseBitmaps(ctx context.Context) error {
	if err := d.mayWrite(); err != nil {
		return err
	}
	info := *d.info.Load()
	if len(info.Bitmaps) == 0 {
		return nil
	}
	entries, e, err := d.directory(ctx)
	if err != nil {
		return err
	}
	var b []byte
	for _, raw := range entries {
		raw[15] |= bitmapInUse
		b = append(b, raw...)
	}
	if err := d.file.WriteAt(ctx, b, e.directoryOffset, 0); err != nil {
		return err
	}
	if err := d.file.Flush(ctx); err != nil {
		return err
	}
	info.Bitmaps = slices.Clone(info.Bitmaps)
	for i := range info.Bitmaps {
		info.Bitmaps[i].InUse = true
		info.Bitmaps[i].flags |= bitmapInUse
	}
	d.info.Store(&info)
	d.bitmapsInUse.Store(true)
	return nil
}

// directory reads the entries of the bitmap directory as they stand in the image, in the order of the list of bitmaps.
func (d *Disk) directory(ctx context.Context) (entries [][]byte, e bitmapsExtension, err error) {
	d.header.Lock()
	h := d.header.header
	d.header.Unlock()
	if e, err = h.bitmaps(); err != nil {
		return nil, e, err
	}
	b := make([]byte, e.directorySize)
	if err := d.file.ReadAt(ctx, b, e.directoryOffset); err != nil {
		return nil, e, err
	}
	for range d.info.Load().Bitmaps {
		if len(b) < bitmapEntryLen {
			return nil, e, invalid("The bitmap directory is shorter than when the image was opened")
		}
		n := bitmapEntryLen + int64(binary.BigEndian.Uint32(b[20:])) + int64(binary.BigEndian.Uint16(b[18:]))
		n += -n & 7
		if n > int64(len(b)) {
			return nil, e, invalid("The bitmap directory is not as it was when the image was opened")
		}
		entries, b = append(entries, b[:n:n]), b[n:]
	}
	return entries, e, nil
}

// StoreBitmaps writes bitmaps to new places, has the header lead there, and gives up the old ones. An image that turned out to be
// corrupt is not written to, so its bitmaps stay marked as in use.
func (d *Disk) StoreBitmaps(ctx context.Context, list []block.StoredBitmap) error {
	if len(list) == 0 && len(d.info.Load().Bitmaps) == 0 || d.corrupt.Load() != nil {
		return nil
	}
	if err := d.prepare(ctx); err != nil {
		return err
	}
	old, err := d.bitmapRanges(ctx, list)
	if err != nil {
		return err
	}
	var taken []freeRange
	info := *d.info.Load()
	info.Bitmaps, err = d.writeBitmaps(ctx, list, &taken)
	if err == nil {
		err = d.switchDirectory(ctx, info.Bitmaps, &taken)
	}
	if err != nil {
		// Nothing leads to them yet, or it is not known whether: then they stay, and are leaked at worst.
		if d.file.Flush(ctx) == nil {
			d.free(ctx, taken)
		}
		return err
	}
	d.info.Store(&info)
	d.bitmapsInUse.Store(false)
	d.freeLater(old)
	return nil
}

// writeBitmaps writes the bits and the tables. Bitmaps that are inconsistent stay where they are.
func (d *Disk) writeBitmaps(ctx context.Context, list []block.StoredBitmap, taken *[]freeRange) ([]BitmapInfo, error) {
	var infos []BitmapInfo
	for _, b := range list {
		if b.Bits == nil {
			if old := d.findBitmap(b.Name); old != nil {
				infos = append(infos, *old)
			}
			continue
		}
		info := BitmapInfo{Name: b.Name, Granularity: b.Granularity, Auto: b.Recording, kind: bitmapTypeDirty}
		if b.Recording {
			info.flags = bitmapAuto
		}
		table, err := d.writeBits(ctx, b.Bits, taken)
		if err == nil {
			info.tableEntries = int64(len(table)) / 8
			info.tableOffset, err = d.writeArea(ctx, table, taken)
		}
		if err != nil {
			return nil, fmt.Errorf("bitmap '%s': %w", b.Name, err)
		}
		infos = append(infos, info)
	}
	return infos, nil
}

// writeBits writes the clusters of a bitmap that are neither all zeroes nor all ones, and returns its table.
func (d *Disk) writeBits(ctx context.Context, b *bitmap.Bitmap, taken *[]freeRange) ([]byte, error) {
	n := d.bitmapBytes(b.Granularity())
	var table, data []byte
	perCluster := d.cluster * 8
	for first := int64(0); first>>3 < n; first += perCluster {
		chunks := bitmap.Chunks{First: first, End: min(first+perCluster, b.All().End)}
		e := uint64(0)
		switch {
		case !b.AnySet(chunks):
		case chunks.Len() == perCluster && b.AllSet(chunks):
			e = bitmapAllOnes
		default:
			data = b.AppendBytes(data[:0], first, int(d.cluster))
			off, err := d.writeArea(ctx, data, taken)
			if err != nil {
				return nil, err
			}
			e = uint64(off)
		}
		table = binary.BigEndian.AppendUint64(table, e)
	}
	return table, nil
}

// writeArea writes b to free clusters in a row, the rest of which become zeroes.
func (d *Disk) writeArea(ctx context.Context, b []byte, taken *[]freeRange) (int64, error) {
	n := d.up(int64(len(b)))
	if n == 0 {
		return 0, nil
	}
	off, err := d.refs.allocArea(ctx, n)
	if err != nil {
		return 0, err
	}
	*taken = addRange(*taken, off, n, freedOther)
	return off, d.file.WriteAt(ctx, append(b, make([]byte, n-int64(len(b)))...), off, 0)
}

// switchDirectory writes the directory and has the header lead to it. The autoclear bit is off while that happens, because the
// extension may lie in two sectors.
func (d *Disk) switchDirectory(ctx context.Context, list []BitmapInfo, taken *[]freeRange) error {
	var directory, extension []byte
	be := binary.BigEndian
	for _, b := range list {
		start := len(directory)
		directory = be.AppendUint64(directory, uint64(b.tableOffset))
		directory = be.AppendUint32(directory, uint32(b.tableEntries))
		directory = be.AppendUint32(directory, b.flags)
		directory = append(directory, b.kind, byte(bits.TrailingZeros64(uint64(b.Granularity))))
		directory = be.AppendUint16(directory, uint16(len(b.Name)))
		directory = be.AppendUint32(directory, uint32(len(b.extra)))
		directory = append(append(directory, b.extra...), b.Name...)
		directory = append(directory, make([]byte, -(len(directory)-start)&7)...)
	}
	if len(directory) > maxDirectoryBytes {
		return invalid("The bitmap directory would have %d bytes, %d are the most", len(directory), maxDirectoryBytes)
	}
	if len(list) > 0 {
		off, err := d.writeArea(ctx, slices.Clip(directory), taken)
		if err != nil {
			return err
		}
		extension = be.AppendUint32(nil, uint32(len(list)))
		extension = be.AppendUint32(extension, 0)
		extension = be.AppendUint64(extension, uint64(len(directory)))
		extension = be.AppendUint64(extension, uint64(off))
	}
	if err := d.commitCounts(ctx); err != nil {
		return err
	}
	if err := d.changeHeader(ctx, func(h *header) { h.autoclear &^= autoclearBitmaps }); err != nil {
		return err
	}
	*taken = nil // from here on the header may lead there
	if err := d.changeExtension(ctx, extBitmaps, extension); err != nil || extension == nil {
		return err
	}
	return d.changeHeader(ctx, func(h *header) { h.autoclear |= autoclearBitmaps })
}

// commitCounts makes the refcounts of everything that was allocated durable.
func (d *Disk) commitCounts(ctx context.Context) error {
	d.commits.Lock()
	defer d.commits.Unlock()
	return d.commit(ctx, true)
}

// changeExtension replaces a header extension, or removes it if data is nil. The header is not whole while that happens.
func (d *Disk) changeExtension(ctx context.Context, kind uint32, data []byte) error {
	d.header.Lock()
	defer d.header.Unlock()
	h := d.header.header
	h.extensions = slices.Clone(h.extensions)
	h.setExtension(kind, data)
	return d.writeHeaderLocked(ctx, h, true)
}

// bitmapRanges are the clusters of the stored bitmaps and of their directory, but for those of bitmaps that stay.
func (d *Disk) bitmapRanges(ctx context.Context, stay []block.StoredBitmap) ([]freeRange, error) {
	var list []freeRange
	add := func(off, n int64) error {
		if n == 0 {
			return nil
		}
		list = addRange(list, off, d.up(n), freedOther)
		return d.checkOverlap(off, d.up(n))
	}
	bitmaps := d.info.Load().Bitmaps
	if len(bitmaps) == 0 {
		return nil, nil
	}
	_, e, err := d.directory(ctx)
	if err == nil {
		err = add(e.directoryOffset, e.directorySize)
	}
	for i := 0; i < len(bitmaps) && err == nil; i++ {
		b := &bitmaps[i]
		if slices.ContainsFunc(stay, func(s block.StoredBitmap) bool { return s.Bits == nil && s.Name == b.Name }) {
			continue
		}
		var table []uint64
		if table, err = d.bitmapTable(ctx, b); err != nil {
			break
		}
		err = add(b.tableOffset, b.tableEntries*8)
		for _, entry := range table {
			if off := int64(entry & bitmapOffsetMask); off != 0 && err == nil {
				err = add(off, d.cluster)
			}
		}
	}
	return list, err
}

var _ block.BitmapKeeper = (*Disk)(nil)
