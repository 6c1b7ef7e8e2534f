// SPDX-License-Identifier: Apache-2.0

package nbdserver

import (
	"context"
	"encoding/binary"
	"slices"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/nbd"
)

const (
	// statusBytes is the most that a block status reply holds of one metadata context, statusMost what it holds of all:
	// beyond that, each gets its share. statusQuestions is how often a context is asked for it.
	statusBytes     = 16 << 10
	statusMost      = 128 << 10
	statusQuestions = 8 << 10
)

func statusCost(contexts int) int64 { return int64(min(contexts*statusBytes, statusMost)) }

// narrow takes the payload of a block status request, which wants some of the selected contexts only.
func (s *session) narrow(t *task) nbd.Errno {
	q, err := nbd.ParseStatusQuery(t.data.B)
	t.data.Release()
	t.data = nil
	if err != nil {
		return nbd.EINVAL
	}
	t.Length = q.Length
	t.contexts = make([]metaContext, 0, len(q.IDs))
	for _, id := range q.IDs {
		same := func(c metaContext) bool { return c.ID == id }
		i := slices.IndexFunc(s.contexts, same)
		if i < 0 || slices.ContainsFunc(t.contexts, same) {
			return nbd.EINVAL
		}
		t.contexts = append(t.contexts, s.contexts[i])
	}
	return s.checkRange(&t.Request)
}

// status describes the range of a task, in one chunk for every context: neighbours of equal state as one extent, as many
// extents as fit.
func (s *session) status(ctx context.Context, t *task, disk *block.Edge) error {
	t.data, t.whole = block.GetBuffer(int(statusCost(len(t.contexts)))), true
	b, share := t.data.B[:0], len(t.data.B)/len(t.contexts)
	for i := range t.contexts {
		from := len(b)
		b = s.appendChunk(b, t, 0, nbd.ChunkBlockStatus, 0) // filled in below
		payload := len(b)
		b = binary.BigEndian.AppendUint32(b, t.contexts[i].ID)
		most := (share - (payload - from) - nbd.StatusSize) / nbd.DescriptorSize
		if s.form == extended {
			b = binary.BigEndian.AppendUint32(b, 0)
			most = (share - (payload - from) - nbd.ExtendedStatusSize) / nbd.ExtendedDescriptorSize
		}
		if t.Flags&nbd.FlagReqOne != 0 {
			most = 1
		}
		var count int
		var err error
		if b, count, err = s.appendExtents(ctx, b, t, disk, i, most); err != nil {
			return err
		}
		flags, kind := nbd.ChunkFlags(0), nbd.ChunkBlockStatus
		if i == len(t.contexts)-1 {
			flags = nbd.ChunkDone
		}
		if s.form == extended {
			kind = nbd.ChunkBlockStatusExt
			binary.BigEndian.PutUint32(b[payload+4:], uint32(count))
		}
		s.appendChunk(b[:from], t, flags, kind, uint64(len(b)-payload))
	}
	t.data.B = b
	return nil
}

// appendExtents adds at most so many descriptors of one context.
func (s *session) appendExtents(ctx context.Context, b []byte, t *task, disk *block.Edge, i, most int) ([]byte, int, error) {
	var last nbd.ExtendedDescriptor
	count, off, rest := 0, int64(t.Offset), int64(t.Length)
	add := func() {
		if count++; s.form == extended {
			b = last.Append(b)
		} else {
			b = nbd.Descriptor{Length: uint32(last.Length), Flags: uint32(last.Flags)}.Append(b)
		}
	}
	for range statusQuestions {
		n, state, err := t.contexts[i].extent(ctx, disk, off, rest)
		if err != nil {
			return b, 0, err
		}
		if n = min(n, rest); n <= 0 {
			return b, 0, fail(block.KindIO, "no block status at offset %d of node '%s'", off, disk.Node().Name())
		}
		if last.Length > 0 && state != last.Flags {
			if add(); count == most {
				return b, count, nil
			}
			last.Length = 0
		}
		last.Flags = state
		last.Length += uint64(n)
		if off, rest = off+n, rest-n; rest == 0 {
			break
		}
	}
	add()
	return b, count, nil
}
