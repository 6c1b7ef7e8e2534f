// SPDX-License-Identifier: Apache-2.0

package qcow2

import (
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/blkmirror/blkmirror/block"
)

// Names in this file are those of the sections "Header" and "Header extensions" of the specification.

const (
	magic = 0x514649fb // "QFI\xfb"

	headerLenV2  = 72
	headerLenV3  = 104
	headerLenOur = 112 // with compression_type and its padding

	minClusterBits    = 9
	maxClusterBits    = 21
	minExtendedBits   = 14 // with extended L2 entries
	maxRefcountOrder  = 6
	maxL1Bytes        = 32 << 20
	maxRefTableBytes  = 8 << 20
	maxBackingName    = 1023
	maxExtensions     = 256
	maxSnapshots      = 65536
	maxSnapshotBytes  = 64 << 20
	maxBitmaps        = 65535
	maxDirectoryBytes = 64 << 20
	maxHostOffset     = 1 << 56 // L1 and L2 entries have no room for more
)

// Bits of incompatible_features.
const (
	incompatDirty = 1 << iota
	incompatCorrupt
	incompatDataFile
	incompatCompression
	incompatExtendedL2

	incompatKnown = 1<<iota - 1
)

const compatLazyRefcounts = 1 << 0

// Bits of autoclear_features.
const (
	autoclearBitmaps = 1 << iota
	autoclearDataFileRaw

	autoclearKnown = autoclearDataFileRaw // what is kept true while the disk is written to
)

// Header extension types.
const (
	extEnd           = 0
	extBackingFormat = 0xe2792aca
	extFeatureNames  = 0x6803f857
	extBitmaps       = 0x23852875
	extEncryption    = 0x0537be77
	extDataFile      = 0x44415441
)

// Values of crypt_method and compression_type.
var (
	cryptNames       = []string{"", "aes", "luks"}
	compressionNames = []string{"zlib", "zstd"}
)

// extension is a header extension as it stands in the image.
type extension struct {
	kind uint32
	data []byte
}

// header is the first cluster of an image.
type header struct {
	version          int
	backingFile      string
	backingOffset    uint64 // of the name; meaningless if that is ""
	clusterBits      uint32
	size             uint64
	crypt            uint32
	l1Size           uint32 // entries
	l1Offset         uint64
	refTableOffset   uint64
	refTableClusters uint32
	snapshots        uint32
	snapshotsOffset  uint64
	incompatible     uint64
	compatible       uint64
	autoclear        uint64
	refcountOrder    uint32
	length           uint32
	compression      uint8
	unknown          []byte // additional fields behind compression_type, kept as they are
	extensions       []extension
}

// Reader is what an image is read from; nodes and edges are readers.
type Reader interface {
	ReadAt(ctx context.Context, p []byte, off int64) error
	Size() int64
}

func invalid(format string, args ...any) error {
	return &block.Error{Kind: block.KindInvalid, Op: block.OpOpen, Err: fmt.Errorf(format, args...)}
}

func notSupported(format string, args ...any) error {
	return &block.Error{Kind: block.KindNotSupported, Op: block.OpOpen, Err: fmt.Errorf(format, args...)}
}

// readPadded fills p; what is behind the end of the file is zero.
func readPadded(ctx context.Context, r Reader, p []byte, off int64) error {
	have := min(max(r.Size()-off, 0), int64(len(p)))
	clear(p[have:])
	if have == 0 {
		return nil
	}
	return r.ReadAt(ctx, p[:have], off)
}

func readHeader(ctx context.Context, r Reader) (*header, error) {
	var fixed [headerLenOur]byte
	if err := readPadded(ctx, r, fixed[:], 0); err != nil {
		return nil, err
	}
	h, err := parseFixed(fixed[:])
	if err != nil {
		return nil, err
	}
	first := make([]byte, h.clusterSize())
	if err := readPadded(ctx, r, first, 0); err != nil {
		return nil, err
	}
	if err := h.parseRest(first); err != nil {
		return nil, err
	}
	return h, h.validate()
}

// parseFixed reads the fields up to header_length, as far as they are needed to read the rest.
func parseFixed(b []byte) (*header, error) {
	be := binary.BigEndian
	if be.Uint32(b) != magic {
		return nil, invalid("Image is not in qcow2 format")
	}
	version := be.Uint32(b[4:])
	if version != 2 && version != 3 {
		return nil, notSupported("Unsupported qcow2 version %d", version)
	}
	h := &header{version: int(version), clusterBits: be.Uint32(b[20:]), size: be.Uint64(b[24:]), crypt: be.Uint32(b[32:]),
		l1Size: be.Uint32(b[36:]), l1Offset: be.Uint64(b[40:]), refTableOffset: be.Uint64(b[48:]),
		refTableClusters: be.Uint32(b[56:]), snapshots: be.Uint32(b[60:]), snapshotsOffset: be.Uint64(b[64:]),
		refcountOrder: 4, length: headerLenV2}
	if h.clusterBits < minClusterBits || h.clusterBits > maxClusterBits {
		return nil, invalid("Unsupported cluster size: 2^%d", h.clusterBits)
	}
	if version == 2 {
		return h, nil
	}
	h.incompatible, h.compatible, h.autoclear = be.Uint64(b[72:]), be.Uint64(b[80:]), be.Uint64(b[88:])
	h.refcountOrder, h.length = be.Uint32(b[96:]), be.Uint32(b[100:])
	switch {
	case h.length < headerLenV3 || h.length%8 != 0:
		return nil, invalid("qcow2 header length %d is invalid", h.length)
	case int64(h.length) > h.clusterSize():
		return nil, invalid("qcow2 header exceeds cluster size")
	}
	return h, nil
}

// parseRest reads the additional fields, the extensions and the name of the backing file out of the first cluster.
func (h *header) parseRest(first []byte) error {
	be := binary.BigEndian
	if h.length > headerLenV3 {
		h.compression = first[headerLenV3]
		h.unknown = slices.Clone(first[headerLenV3+1 : h.length])
	}
	area := first[h.length:]
	if at := be.Uint64(first[8:]); at != 0 {
		length := be.Uint32(first[16:])
		switch {
		case length > maxBackingName:
			return invalid("Backing file name is too long (%d bytes)", length)
		case at < uint64(h.length) || at > uint64(len(first))-uint64(length):
			return invalid("Invalid backing file offset %d", at)
		}
		h.backingFile, h.backingOffset = string(first[at:at+uint64(length)]), at
		area = first[h.length:at]
	}
	return h.parseExtensions(area)
}

func (h *header) parseExtensions(area []byte) error {
	be := binary.BigEndian
	for len(area) >= 8 {
		kind, length := be.Uint32(area), uint64(be.Uint32(area[4:]))
		if kind == extEnd {
			return nil
		}
		area = area[8:]
		if length > uint64(len(area)) {
			return invalid("Header extension 0x%08x of %d bytes is too large", kind, length)
		}
		if len(h.extensions) == maxExtensions {
			return invalid("The header has more than %d extensions", maxExtensions)
		}
		if h.extension(kind) == nil { // each type appears at most once
			h.extensions = append(h.extensions, extension{kind, slices.Clone(area[:length:length])})
		}
		area = area[min((length+7)&^7, uint64(len(area))):]
	}
	return nil
}

func (h *header) extension(kind uint32) []byte {
	for _, e := range h.extensions {
		if e.kind == kind {
			return e.data
		}
	}
	return nil
}

// setExtension replaces, adds or with nil removes an extension.
func (h *header) setExtension(kind uint32, data []byte) {
	at := slices.IndexFunc(h.extensions, func(e extension) bool { return e.kind == kind })
	switch {
	case data == nil && at >= 0:
		h.extensions = slices.Delete(h.extensions, at, at+1)
	case data == nil:
	case at >= 0:
		h.extensions[at].data = data
	default:
		h.extensions = append(h.extensions, extension{kind, data})
	}
}

func (h *header) clusterSize() int64 { return 1 << h.clusterBits }

func (h *header) extendedL2() bool { return h.incompatible&incompatExtendedL2 != 0 }

// entryBits is the logarithm of the size of an L2 entry in bytes.
func (h *header) entryBits() uint32 {
	if h.extendedL2() {
		return 4
	}
	return 3
}

// l1Shift is the logarithm of how many bytes of the disk an L1 entry stands for.
func (h *header) l1Shift() uint32 { return 2*h.clusterBits - h.entryBits() }

// l1Needed is how many L1 entries a disk of size bytes needs.
func (h *header) l1Needed(size uint64) uint64 {
	shift := h.l1Shift()
	return size>>shift + min(1, size&(1<<shift-1))
}

// validate checks the fields against the specification and the bounds on tables.
func (h *header) validate() error {
	mask := uint64(h.clusterSize() - 1)
	if unknown := h.incompatible &^ incompatKnown; unknown != 0 {
		return notSupported("Unsupported qcow2 feature(s): %s", h.featureNames(unknown))
	}
	switch {
	case h.crypt >= uint32(len(cryptNames)):
		return notSupported("Unsupported encryption method in header: %d", h.crypt)
	case h.extendedL2() && h.clusterBits < minExtendedBits:
		return invalid("Extended L2 entries are only supported with cluster sizes of at least %d bytes", 1<<minExtendedBits)
	case h.refcountOrder > maxRefcountOrder:
		return invalid("Reference count entry width too large; may not exceed 64 bits")
	case (h.incompatible&incompatCompression != 0) != (h.compression != 0):
		return invalid("The compression type %d does not go with the header's compression type bit", h.compression)
	case int(h.compression) >= len(compressionNames):
		return notSupported("Unknown compression type: %d", h.compression)
	case h.size > math.MaxInt64:
		return invalid("The image size %d is too large", h.size)
	case h.autoclear&autoclearDataFileRaw != 0 && h.incompatible&incompatDataFile == 0:
		return invalid("data-file-raw requires a data file")
	}
	needed := h.l1Needed(h.size)
	switch {
	case uint64(h.l1Size)*8 > maxL1Bytes || needed*8 > maxL1Bytes:
		return invalid("Active L1 table too large")
	case uint64(h.l1Size) < needed:
		return invalid("L1 table is too small")
	case h.l1Offset&mask != 0 || h.l1Offset >= maxHostOffset || (h.l1Offset == 0 && h.l1Size > 0):
		return invalid("Active L1 table offset invalid")
	case h.refTableClusters == 0:
		return invalid("Image does not contain a reference count table")
	case uint64(h.refTableClusters)<<h.clusterBits > max(maxRefTableBytes, uint64(h.clusterSize())):
		return invalid("Reference count table too large")
	case h.refTableOffset&mask != 0 || h.refTableOffset == 0 || h.refTableOffset >= maxHostOffset:
		return invalid("Reference count table offset invalid")
	case h.snapshots > maxSnapshots:
		return invalid("Snapshot table too large")
	case h.snapshots > 0 && (h.snapshotsOffset&mask != 0 || h.snapshotsOffset == 0 || h.snapshotsOffset >= maxHostOffset):
		return invalid("Snapshot table offset invalid")
	}
	return nil
}

// featureNames lists incompatible features by the image's own feature name table, or by their bits.
func (h *header) featureNames(features uint64) string {
	names := map[byte]string{}
	const size = 48
	for table := h.extension(extFeatureNames); len(table) >= size; table = table[size:] {
		if table[0] == 0 {
			name, _, _ := strings.Cut(string(table[2:size]), "\x00")
			names[table[1]] = strings.ToValidUTF8(name, "?")
		}
	}
	var list []string
	for bit := range byte(64) {
		if features&(1<<bit) == 0 {
			continue
		}
		name := names[bit]
		if name == "" {
			name = fmt.Sprintf("Unknown incompatible feature: bit %d", bit)
		}
		list = append(list, name)
	}
	return strings.Join(list, ", ")
}

// encodeFixed is the header up to header_length.
func (h *header) encodeFixed() []byte {
	be := binary.BigEndian
	b := make([]byte, h.length)
	be.PutUint32(b, magic)
	be.PutUint32(b[4:], uint32(h.version))
	if h.backingFile != "" {
		be.PutUint64(b[8:], h.backingOffset)
		be.PutUint32(b[16:], uint32(len(h.backingFile)))
	}
	be.PutUint32(b[20:], h.clusterBits)
	be.PutUint64(b[24:], h.size)
	be.PutUint32(b[32:], h.crypt)
	be.PutUint32(b[36:], h.l1Size)
	be.PutUint64(b[40:], h.l1Offset)
	be.PutUint64(b[48:], h.refTableOffset)
	be.PutUint32(b[56:], h.refTableClusters)
	be.PutUint32(b[60:], h.snapshots)
	be.PutUint64(b[64:], h.snapshotsOffset)
	if h.version == 2 {
		return b
	}
	be.PutUint64(b[72:], h.incompatible)
	be.PutUint64(b[80:], h.compatible)
	be.PutUint64(b[88:], h.autoclear)
	be.PutUint32(b[96:], h.refcountOrder)
	be.PutUint32(b[100:], h.length)
	if h.length > headerLenV3 {
		b[headerLenV3] = h.compression
		copy(b[headerLenV3+1:], h.unknown)
	}
	return b
}

// encode is the whole header with its extensions and the name of the backing file, which it puts behind them.
func (h *header) encode() ([]byte, error) {
	be := binary.BigEndian
	h.backingOffset = uint64(h.length) + 8
	for _, e := range h.extensions {
		h.backingOffset += 8 + uint64(len(e.data)+7)&^7
	}
	b := h.encodeFixed()
	for _, e := range h.extensions {
		b = be.AppendUint32(b, e.kind)
		b = be.AppendUint32(b, uint32(len(e.data)))
		b = append(b, e.data...)
		b = append(b, make([]byte, -len(e.data)&7)...)
	}
	b = append(b, make([]byte, 8)...)
	b = append(b, h.backingFile...)
	if int64(len(b)) > h.clusterSize() {
		return nil, invalid("The header with its extensions and the name of the backing file needs %d bytes, "+
			"the first cluster has %d", len(b), h.clusterSize())
	}
	return b, nil
}
