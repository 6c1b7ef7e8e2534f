// SPDX-License-Identifier: Apache-2.0

package intent

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
)

const (
	magic   = "blkmirri"
	version = 2 // 1 had no comparisons

	sector      = 512
	recordsAt   = 4096
	recordWords = 62 // 64 bits each
	perRecord   = recordWords * 64

	minRegion  = 1 << 20
	maxRegions = 1 << 18
	maxShift   = 62
)

// Durability says what a mirror survives.
type Durability uint8

// The durabilities.
const (
	Process Durability = 1 + iota // the death of the process
	Host                          // the death of the host, too
)

func (d Durability) String() string { return [...]string{"", "process", "host"}[d] }

// Phase says how far a mirror is.
type Phase uint8

// The phases.
const (
	Scanning Phase = 1 + iota // it is not known what has to be copied: everything counts as dirty
	Copying                   // what is marked may have to be copied
	Ready                     // the same; the target had caught up once
	Pivoted                   // the target is the disk now
	Ended                     // the mirror ended otherwise and does not come back
)

func (p Phase) String() string {
	return [...]string{"", "scanning", "copying", "ready", "pivoted", "ended"}[p]
}

// header is the first sector.
type header struct {
	id             [16]byte // of the file; records belong to it
	sequence       uint64
	durability     Durability
	phase          Phase
	orderly        bool // the identities have the times of an orderly stop
	shift          uint8
	size           int64 // of the disk, in bytes
	boot           [16]byte
	source, target Identity
	version        uint32
	pass           uint64 // number of the comparison that was begun last; 0 for none
	differing      int64  // bytes that differed in it
}

// layout of the header, little endian: magic 0, version 8, CRC32C 12 (of the sector with this field zero), id 16, sequence 32,
// size 40, boot 48, durability 64, phase 65, orderly 66, shift 67, identities 128 and 224, pass 320,
// differing 328.
const (
	crcAt    = 12
	sourceAt = 128
	targetAt = 224
	passAt   = 320
)

var (
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
	le         = binary.LittleEndian
)

func (h *header) encode(b *[sector]byte) {
	*b = [sector]byte{}
	copy(b[:], magic)
	le.PutUint32(b[8:], h.version)
	copy(b[16:], h.id[:])
	le.PutUint64(b[32:], h.sequence)
	le.PutUint64(b[40:], uint64(h.size))
	copy(b[48:], h.boot[:])
	b[64], b[65], b[67] = byte(h.durability), byte(h.phase), h.shift
	if h.orderly {
		b[66] = 1
	}
	h.source.encode(b[sourceAt:targetAt])
	h.target.encode(b[targetAt : targetAt+targetAt-sourceAt])
	le.PutUint64(b[passAt:], h.pass)
	le.PutUint64(b[passAt+8:], uint64(h.differing))
	le.PutUint32(b[crcAt:], crc32.Checksum(b[:], castagnoli))
}

// decode takes only what encode makes.
func (h *header) decode(b *[sector]byte) error {
	if !bytes.HasPrefix(b[:], []byte(magic)) {
		return errors.New("it is no intent file of blkmirror")
	}
	v := le.Uint32(b[8:])
	if v < 1 || v > version {
		return fmt.Errorf("it has version %d, and this program knows versions up to %d", v, version)
	}
	*h = header{sequence: le.Uint64(b[32:]), size: int64(le.Uint64(b[40:])), durability: Durability(b[64]), phase: Phase(b[65]),
		orderly: b[66] != 0, shift: b[67], version: v, pass: le.Uint64(b[passAt:]), differing: int64(le.Uint64(b[passAt+8:]))}
	copy(h.id[:], b[16:])
	copy(h.boot[:], b[48:])
	h.source.decode(b[sourceAt:])
	h.target.decode(b[targetAt:])
	var again [sector]byte
	h.encode(&again)
	switch {
	case again != *b:
		return fmt.Errorf("its header at offset 0 is damaged: its CRC32C is %08x and should be %08x", le.Uint32(b[crcAt:]),
			le.Uint32(again[crcAt:]))
	case h.durability < Process || h.durability > Host || h.phase < Scanning || h.phase > Ended || h.shift > maxShift || h.differing < 0 ||
		h.size < 0 || h.size > math.MaxInt64-1<<h.shift || regionsOf(h.size, h.shift) > maxRegions:
		return errors.New("its header at offset 0 makes no sense")
	}
	return nil
}

func regionsOf(size int64, shift uint8) int64 {
	n := size >> shift
	if n<<shift < size {
		n++
	}
	return n
}

func recordsFor(regions int64) int64 { return (regions + perRecord - 1) / perRecord }

func recordAt(i int64) int64 { return recordsAt + i*sector }

// A record, little endian: 62 words of bits, the first region the lowest bit of the first one; zero 496, sequence 500, CRC32C
// 508. The checksum is over the file's id, the number of the record, and the record up to it: what belongs elsewhere is damaged.
func encodeRecord(b *[sector]byte, id [16]byte, number int64, sequence uint64, words []uint64) {
	*b = [sector]byte{}
	for i, w := range words {
		le.PutUint64(b[i*8:], w)
	}
	le.PutUint64(b[500:], sequence)
	le.PutUint32(b[508:], recordCRC(b, id, number))
}

func recordCRC(b *[sector]byte, id [16]byte, number int64) uint32 {
	var place [8]byte
	le.PutUint64(place[:], uint64(number))
	crc := crc32.Update(crc32.Checksum(id[:], castagnoli), castagnoli, place[:])
	return crc32.Update(crc, castagnoli, b[:508])
}

func decodeRecord(b *[sector]byte, id [16]byte, number int64, words []uint64) error {
	if crc, want := le.Uint32(b[508:]), recordCRC(b, id, number); crc != want {
		return fmt.Errorf("its CRC32C is %08x and should be %08x", crc, want)
	}
	for i := range words {
		words[i] = le.Uint64(b[i*8:])
	}
	return nil
}
