// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
)

// A record fills a sector: magic (4 bytes), version (4), sector number (8), a body that follows from version and number, and in
// the last 4 bytes the CRC32C of all before. Integers are little endian.
const (
	magic  = 0x7365_7567
	atBody = 16
	atSum  = SectorBytes - 4
)

var (
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
	zeroes     [SectorBytes]byte
)

// Fill makes the content of some sectors as one version has it.
func Fill(data []byte, version Version, first int64) {
	if version == 0 {
		clear(data)
		return
	}
	for i := range int64(len(data)) / SectorBytes {
		fill(data[i*SectorBytes:][:SectorBytes], version, first+i)
	}
}

func fill(record []byte, version Version, sector int64) {
	order := binary.LittleEndian
	order.PutUint32(record, magic)
	order.PutUint32(record[4:], uint32(version))
	order.PutUint64(record[8:], uint64(sector))
	x := uint64(version)<<40 ^ uint64(sector) + 1
	for at := atBody; at < SectorBytes; at += 8 {
		// Marsaglia's xorshift, which is quick on a slow machine; the last step is half overwritten by the sum.
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		order.PutUint64(record[at:], x)
	}
	order.PutUint32(record[atSum:], crc32.Checksum(record[:atSum], castagnoli))
}

// Identify tells the version of what is read from a sector. It fails if no operation wrote that there.
func Identify(data []byte, sector int64) (Version, error) {
	if bytes.Equal(data, zeroes[:]) {
		return 0, nil
	}
	order := binary.LittleEndian
	version, place := Version(order.Uint32(data[4:])), int64(order.Uint64(data[8:]))
	switch sum := crc32.Checksum(data[:atSum], castagnoli); {
	case order.Uint32(data) != magic:
		return 0, fmt.Errorf("sector %d holds no record: % x", sector, data[:atBody])
	case order.Uint32(data[atSum:]) != sum:
		return 0, fmt.Errorf("sector %d: the record of version %d is damaged: checksum %#x, not %#x",
			sector, version, order.Uint32(data[atSum:]), sum)
	case place != sector:
		return 0, fmt.Errorf("sector %d holds version %d of sector %d", sector, version, place)
	}
	return version, nil
}
