// SPDX-License-Identifier: Apache-2.0

package nbdserver

import (
	"context"
	"encoding/binary"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/nbd"
)

const (
	// sparseLeast is the shortest read that is looked at for holes, and the shortest hole that is told: to ask costs a
	// few microseconds, and so does every further chunk.
	sparseLeast = 64 << 10
	// sparseMost is the most parts of one read.
	sparseMost = 16
)

// part is a piece of a read that is all hole or all data.
type part struct {
	n    int64
	hole bool
}

// readSparse reads what is not known to be zero. It does nothing and returns false if all of it must be read.
func (s *session) readSparse(ctx context.Context, t *task, disk *block.Edge) (bool, error) {
	var parts [sparseMost]part
	list, data := holes(ctx, parts[:0], disk, int64(t.Offset), int64(t.Length))
	if list == nil || data > 0 && disk.Node().Limits().MemoryAlign > 1 { // heads between the data would spoil its alignment
		return false, nil
	}
	head := nbd.ChunkSize
	if s.form == extended {
		head = nbd.ExtendedChunkSize
	}
	t.data, t.whole = block.GetBuffer(len(list)*(head+nbd.HoleSize)+int(data)), true
	b, off := t.data.B[:0], t.Offset
	for i, p := range list {
		flags := nbd.ChunkFlags(0)
		if i == len(list)-1 {
			flags = nbd.ChunkDone
		}
		if p.hole {
			b = s.appendChunk(b, t, flags, nbd.ChunkOffsetHole, nbd.HoleSize)
			b = nbd.Hole{Offset: off, Length: uint32(p.n)}.Append(b)
		} else {
			b = s.appendChunk(b, t, flags, nbd.ChunkOffsetData, uint64(p.n)+8)
			b = binary.BigEndian.AppendUint64(b, off)
			from := len(b)
			b = b[:from+int(p.n)]
			if err := disk.ReadAt(ctx, b[from:], int64(off)); err != nil {
				return true, err
			}
		}
		off += uint64(p.n)
	}
	t.data.B = b
	return true, nil
}

// holes divides a range into parts, in list, which it does not let grow. data is how many bytes of them must be read; nil if
// that is all of them, or unknown: then the read will tell of the failure.
func holes(ctx context.Context, list []part, disk *block.Edge, off, rest int64) (parts []part, data int64) {
	found := false
	add := func(n int64, hole bool) {
		if !hole {
			data += n
		}
		found = found || hole
		if last := len(list) - 1; last >= 0 && list[last].hole == hole {
			list[last].n += n
		} else {
			list = append(list, part{n, hole})
		}
	}
	for rest > 0 && len(list) < cap(list)-1 {
		extent, err := disk.BlockStatus(ctx, off, rest)
		n := min(extent.Len, rest)
		if err != nil || n <= 0 {
			return nil, 0
		}
		add(n, extent.Status&block.StatusZero != 0 && n >= sparseLeast)
		off, rest = off+n, rest-n
	}
	if rest > 0 {
		add(rest, false)
	}
	if !found {
		return nil, 0
	}
	return list, data
}
