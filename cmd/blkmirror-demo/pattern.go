// SPDX-License-Identifier: Apache-2.0

package main

import "encoding/binary"

// sectorSize is the unit in which the guest writes and the model remembers.
const sectorSize = 512

// content is what a sector was written with: 0 are zeroes, any other number
// is a pattern of its own.
type content uint32

// pattern makes the bytes of sectors. No two contents have a sector in
// common, and no content has the same bytes in two sectors, so that data in
// the wrong place shows as well as old data.
type pattern struct{ seed uint64 }

// fill fills a whole number of sectors, the first of which has this number.
func (p pattern) fill(data []byte, first int64, c content) {
	if c == 0 {
		clear(data)
		return
	}
	for ; len(data) > 0; data, first = data[sectorSize:], first+1 {
		state := mix(mix(p.seed^uint64(c)) + uint64(first))
		for i := 0; i < sectorSize; i += 8 {
			state += 0x9e3779b97f4a7c15
			binary.LittleEndian.PutUint64(data[i:], mix(state))
		}
	}
}

// mix scatters the bits of a number (the finish of splitmix64).
func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
