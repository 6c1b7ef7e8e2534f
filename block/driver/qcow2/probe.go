// SPDX-License-Identifier: Apache-2.0

package qcow2

import (
	"context"
	"encoding/binary"
	"slices"
)

// Info describes an image.
type Info struct {
	Version      int   // 2 or 3
	Size         int64 // bytes of the disk, in whole sectors
	ClusterSize  int64 // bytes
	RefcountBits int

	ExtendedL2, LazyRefcounts, Dirty, Corrupt bool

	CompressionType string // "zlib" or "zstd"
	BackingFile     string // "" for none
	BackingFormat   string // "" if the image does not say
	DataFile        string // "" if the image does not say
	HasDataFile     bool
	DataFileRaw     bool
	Encryption      string // "", "aes" or "luks"

	Snapshots []Snapshot
	Bitmaps   []BitmapInfo

	snapshotBytes int64 // length of the snapshot table
}

// Snapshot is an internal snapshot.
type Snapshot struct {
	ID, Name    string
	Size        int64 // of the disk, in bytes
	VMStateSize int64 // bytes
	DateSec     uint32
	DateNsec    uint32
	VMClockNsec int64
	ICount      int64 // -1 if there is none

	l1Offset int64
	l1Size   int64 // entries
}

// BitmapInfo is a persistent dirty bitmap as the bitmap directory lists it.
type BitmapInfo struct {
	Name        string
	Granularity int64 // bytes
	Auto        bool  // was recording
	InUse       bool  // was not stored at last, so it is inconsistent

	tableOffset, tableEntries int64
	flags                     uint32
	kind                      byte   // 1 for a dirty bitmap
	extra                     []byte // of the directory entry, kept as it is
}

// Probe reads what is needed to open the children of an image: the header, its extensions, and what the tables of
// snapshots and bitmaps say. It never writes.
func Probe(ctx context.Context, file Reader) (*Info, error) {
	h, err := readHeader(ctx, file)
	if err != nil {
		return nil, err
	}
	info := h.info()
	info.Snapshots, info.snapshotBytes, err = readSnapshots(ctx, file, h)
	if err != nil {
		return nil, err
	}
	info.Bitmaps, err = readBitmapDirectory(ctx, file, h)
	return info, err
}

// info is what the header alone says.
func (h *header) info() *Info {
	return &Info{Version: h.version, Size: int64(h.size) &^ 511, ClusterSize: h.clusterSize(), RefcountBits: 1 << h.refcountOrder,
		ExtendedL2: h.extendedL2(), LazyRefcounts: h.compatible&compatLazyRefcounts != 0,
		Dirty: h.incompatible&incompatDirty != 0, Corrupt: h.incompatible&incompatCorrupt != 0,
		CompressionType: compressionNames[h.compression], BackingFile: h.backingFile,
		BackingFormat: string(h.extension(extBackingFormat)), DataFile: string(h.extension(extDataFile)),
		HasDataFile: h.incompatible&incompatDataFile != 0, DataFileRaw: h.autoclear&autoclearDataFileRaw != 0,
		Encryption: cryptNames[h.crypt]}
}

// tableReader reads consecutive entries of a table of variable length. It reads the table in pieces and never more than
// limit bytes of it.
type tableReader struct {
	file       Reader
	off, limit int64
	buf        []byte
}

// next returns the next n bytes.
func (t *tableReader) next(ctx context.Context, n int64, what string) ([]byte, error) {
	if n > t.limit || t.off > t.file.Size()-n {
		return nil, invalid("%s is larger than its place or goes beyond the end of the file", what)
	}
	if int64(len(t.buf)) < n {
		piece := min(max(n, 4096), t.limit, t.file.Size()-t.off)
		t.buf = make([]byte, piece)
		if err := t.file.ReadAt(ctx, t.buf, t.off); err != nil {
			return nil, err
		}
	}
	b := t.buf[:n:n]
	t.buf, t.off, t.limit = t.buf[n:], t.off+n, t.limit-n
	return b, nil
}

func readSnapshots(ctx context.Context, file Reader, h *header) (list []Snapshot, bytes int64, err error) {
	if h.snapshots == 0 {
		return nil, 0, nil
	}
	const what = "The snapshot table"
	be := binary.BigEndian
	t := &tableReader{file: file, off: int64(h.snapshotsOffset), limit: maxSnapshotBytes}
	for range h.snapshots {
		b, err := t.next(ctx, 40, what)
		if err != nil {
			return nil, 0, err
		}
		s := Snapshot{l1Offset: int64(be.Uint64(b)), l1Size: int64(be.Uint32(b[8:])), DateSec: be.Uint32(b[16:]),
			DateNsec: be.Uint32(b[20:]), VMClockNsec: int64(be.Uint64(b[24:])), VMStateSize: int64(be.Uint32(b[32:])),
			Size: int64(h.size), ICount: -1}
		idLen, nameLen, extraLen := int64(be.Uint16(b[12:])), int64(be.Uint16(b[14:])), int64(be.Uint32(b[36:]))
		extra, err := t.next(ctx, extraLen, what)
		if err != nil {
			return nil, 0, err
		}
		if len(extra) >= 8 {
			s.VMStateSize = int64(be.Uint64(extra))
		}
		if len(extra) >= 16 {
			s.Size = int64(be.Uint64(extra[8:]))
		}
		if len(extra) >= 24 {
			s.ICount = int64(be.Uint64(extra[16:]))
		}
		names, err := t.next(ctx, idLen+nameLen, what)
		if err != nil {
			return nil, 0, err
		}
		s.ID, s.Name = string(names[:idLen]), string(names[idLen:])
		if _, err := t.next(ctx, -(40+extraLen+idLen+nameLen)&7, what); err != nil {
			return nil, 0, err
		}
		if s.l1Offset&(h.clusterSize()-1) != 0 || s.l1Offset < 0 || s.l1Offset >= maxHostOffset || s.l1Size*8 > maxL1Bytes {
			return nil, 0, invalid("The L1 table of snapshot '%s' is at an invalid place or too large", s.Name)
		}
		list = append(list, s)
	}
	return list, maxSnapshotBytes - t.limit, nil
}

// bitmapsExtension is the content of the header extension of that name; count is 0 if there is none.
type bitmapsExtension struct {
	count                          uint32
	directorySize, directoryOffset int64
}

func (h *header) bitmaps() (bitmapsExtension, error) {
	be := binary.BigEndian
	b := h.extension(extBitmaps)
	if b == nil {
		return bitmapsExtension{}, nil
	}
	if len(b) != 24 {
		return bitmapsExtension{}, invalid("The bitmaps extension has %d bytes, not 24", len(b))
	}
	e := bitmapsExtension{be.Uint32(b), int64(be.Uint64(b[8:])), int64(be.Uint64(b[16:]))}
	switch {
	case e.count == 0 || e.count > maxBitmaps:
		return e, invalid("The bitmaps extension says that there are %d bitmaps", e.count)
	case e.directorySize <= 0 || e.directorySize > maxDirectoryBytes:
		return e, invalid("The bitmap directory has an invalid size of %d bytes", e.directorySize)
	case e.directoryOffset <= 0 || e.directoryOffset >= maxHostOffset || e.directoryOffset&(h.clusterSize()-1) != 0:
		return e, invalid("The bitmap directory is at the invalid offset %d", e.directoryOffset)
	}
	return e, nil
}

// readBitmapDirectory lists the bitmaps. Without the autoclear bit the extension means nothing.
func readBitmapDirectory(ctx context.Context, file Reader, h *header) ([]BitmapInfo, error) {
	if h.autoclear&autoclearBitmaps == 0 {
		return nil, nil
	}
	e, err := h.bitmaps()
	if err != nil {
		return nil, err
	}
	if e.count == 0 {
		return nil, invalid("The autoclear bit of bitmaps is set, but there is no bitmaps extension")
	}
	const what = "The bitmap directory"
	be := binary.BigEndian
	t := &tableReader{file: file, off: e.directoryOffset, limit: e.directorySize}
	var list []BitmapInfo
	for range e.count {
		b, err := t.next(ctx, 24, what)
		if err != nil {
			return nil, err
		}
		flags, bits := be.Uint32(b[12:]), b[17]
		nameLen, extraLen := int64(be.Uint16(b[18:])), int64(be.Uint32(b[20:]))
		info := BitmapInfo{InUse: flags&1 != 0, Auto: flags&2 != 0, tableOffset: int64(be.Uint64(b)), tableEntries: int64(be.Uint32(b[8:])),
			flags: flags, kind: b[16]}
		if bits > 62 || info.tableOffset&(h.clusterSize()-1) != 0 || info.tableOffset < 0 || info.tableOffset >= maxHostOffset {
			return nil, invalid("A bitmap directory entry is invalid: granularity 2^%d, table at %d", bits, info.tableOffset)
		}
		info.Granularity = 1 << bits
		extra, err := t.next(ctx, extraLen, what)
		if err != nil {
			return nil, err
		}
		info.extra = slices.Clone(extra)
		name, err := t.next(ctx, nameLen, what)
		if err != nil {
			return nil, err
		}
		info.Name = string(name)
		if _, err := t.next(ctx, -(24+extraLen+nameLen)&7, what); err != nil {
			return nil, err
		}
		list = append(list, info)
	}
	return list, nil
}
