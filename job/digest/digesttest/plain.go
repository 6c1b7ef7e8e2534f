// SPDX-License-Identifier: Apache-2.0

// Package digesttest computes the digests of disks as their documentation has it, for tests.
package digesttest

import (
	"encoding/binary"
	"encoding/hex"

	"lukechampine.com/blake3"
)

const leafSize = 1 << 20

// Plain is the digest of a disk, by recursion.
func Plain(p []byte) string {
	var node func(p []byte) [32]byte
	node = func(p []byte) [32]byte {
		n := (len(p) + leafSize - 1) / leafSize
		if n <= 1 {
			return blake3.Sum256(p)
		}
		half := 1
		for half*2 < n {
			half *= 2
		}
		left, right := node(p[:half*leafSize]), node(p[half*leafSize:])
		return blake3.Sum256(append(left[:], right[:]...))
	}
	all := binary.LittleEndian.AppendUint64([]byte("blkmirror-disk-1"), uint64(len(p)))
	if len(p) > 0 {
		top := node(p)
		all = append(all, top[:]...)
	}
	h := blake3.Sum256(all)
	return hex.EncodeToString(h[:])
}
