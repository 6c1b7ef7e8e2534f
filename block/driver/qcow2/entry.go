// SPDX-License-Identifier: Apache-2.0

package qcow2

import (
	"encoding/binary"
	"fmt"
)

// Bits of L1 and L2 entries.
const (
	flagCopied     = 1 << 63
	flagCompressed = 1 << 62
	flagZero       = 1 << 0
	offsetMask     = 0x00fffffffffffe00

	sectorSize = 512
)

// geometry is what of the header never changes while an image is open.
type geometry struct {
	version     int
	clusterBits uint32
	cluster     int64  // bytes
	subBits     uint32 // logarithm of what can be allocated by itself: a subcluster, or the cluster
	sub         int64  // bytes
	subs        uint32 // in a cluster: 32 or 1
	allSubs     uint32 // a bit for each
	entry       int64  // bytes of an L2 entry
	l1Shift     uint32 // logarithm of the bytes of the disk that an L2 table stands for
	extended    bool
	compression uint8 // compression_type
	external    bool  // guest clusters lie in a data file, each at its own offset
}

func newGeometry(h *header) geometry {
	g := geometry{version: h.version, clusterBits: h.clusterBits, cluster: h.clusterSize(), subBits: h.clusterBits, subs: 1,
		allSubs: 1, entry: 1 << h.entryBits(), l1Shift: h.l1Shift(), extended: h.extendedL2(),
		compression: h.compression, external: h.incompatible&incompatDataFile != 0}
	if g.extended {
		g.subBits, g.subs, g.allSubs = h.clusterBits-5, 32, 1<<32-1
	}
	g.sub = 1 << g.subBits
	return g
}

// down and up round to whole clusters.
func (g *geometry) down(n int64) int64 { return n &^ (g.cluster - 1) }
func (g *geometry) up(n int64) int64   { return (n + g.cluster - 1) &^ (g.cluster - 1) }

// none is the host offset of a cluster that has no place.
const none = -1

// entry is an L2 entry. An image without subclusters has one in each cluster.
type entry struct {
	host       int64  // place of the cluster, or of its compressed data; none
	length     int64  // bytes of compressed data, at most
	allocated  uint32 // bits of subclusters that hold data
	zero       uint32 // bits of subclusters that read as zeroes
	compressed bool
	copied     bool // nobody else refers to the cluster
}

// readEntry decodes the L2 entry at b of the cluster at guest.
func (g *geometry) readEntry(b []byte, guest int64) (entry, error) {
	descriptor := binary.BigEndian.Uint64(b)
	if descriptor == 0 && !g.extended { // the most frequent one
		return entry{host: none}, nil
	}
	if descriptor&flagCompressed != 0 {
		if g.external {
			return entry{}, fmt.Errorf("a compressed cluster in an image with a data file")
		}
		x := 62 - (g.clusterBits - 8)
		host := int64(descriptor & (1<<min(x, 56) - 1))
		sectors := int64(descriptor&(1<<62-1)>>x) + 1
		return entry{host: host, length: sectors*sectorSize - host%sectorSize, compressed: true}, nil
	}
	e := entry{host: int64(descriptor & offsetMask), copied: descriptor&flagCopied != 0}
	if e.host == 0 && !(g.external && e.copied) {
		e.host = none
	}
	switch {
	case e.host == none:
	case e.host&(g.cluster-1) != 0:
		return e, fmt.Errorf("the cluster offset %#x is unaligned", e.host)
	case g.external && e.host != guest:
		return e, fmt.Errorf("the cluster offset %#x is not that of the guest in an image with a data file", e.host)
	}
	if !g.extended {
		if descriptor&flagZero != 0 && g.version >= 3 {
			e.zero = 1
		} else if e.host != none {
			e.allocated = 1
		}
		return e, nil
	}
	bitmap := binary.BigEndian.Uint64(b[8:])
	e.allocated, e.zero = uint32(bitmap), uint32(bitmap>>32)
	switch {
	case e.allocated&e.zero != 0:
		return e, fmt.Errorf("subclusters are both allocated and zero (bitmap %#x)", bitmap)
	case e.allocated != 0 && e.host == none:
		return e, fmt.Errorf("subclusters are allocated without a place (bitmap %#x)", bitmap)
	}
	return e, nil
}

// writeEntry encodes a standard cluster's entry.
func (g *geometry) writeEntry(b []byte, e entry) {
	var descriptor uint64
	if e.host != none {
		descriptor = uint64(e.host)
		if e.copied {
			descriptor |= flagCopied
		}
	}
	if g.extended {
		binary.BigEndian.PutUint64(b[8:], uint64(e.allocated)|uint64(e.zero)<<32)
	} else if e.zero != 0 {
		descriptor |= flagZero
	}
	binary.BigEndian.PutUint64(b, descriptor)
}

// mask is the subclusters that the bytes from to to of a cluster touch.
func (g *geometry) mask(from, to int64) uint32 {
	first, end := uint32(from>>g.subBits), uint32((to+g.sub-1)>>g.subBits)
	return uint32(uint64(1)<<end - uint64(1)<<first)
}
