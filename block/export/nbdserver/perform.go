// SPDX-License-Identifier: Apache-2.0

package nbdserver

import (
	"context"
	"encoding/binary"
	"fmt"
	"time"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/nbd"
)

const (
	allocationID = 1 // what the server calls base:allocation in block status replies

	// statusBytes is the most that a block status reply holds, statusQuestions how often the node is asked for it.
	statusBytes     = 16 << 10
	statusQuestions = 8 << 10
)

// commands says of every command which flags it takes, and what it does.
var commands = [...]struct {
	known   bool
	flags   nbd.CommandFlags
	changes bool // writes to the disk
	ranged  bool // has an offset and a length
	limited bool // takes no more than MaxPayload
}{
	nbd.CmdRead:        {known: true, flags: nbd.FlagFUA | nbd.FlagDF, ranged: true, limited: true},
	nbd.CmdWrite:       {known: true, flags: nbd.FlagFUA, changes: true, ranged: true, limited: true},
	nbd.CmdFlush:       {known: true, flags: nbd.FlagFUA},
	nbd.CmdTrim:        {known: true, flags: nbd.FlagFUA, changes: true, ranged: true},
	nbd.CmdCache:       {known: true, flags: nbd.FlagFUA, ranged: true, limited: true},
	nbd.CmdWriteZeroes: {known: true, flags: nbd.FlagFUA | nbd.FlagNoHole | nbd.FlagFastZero, changes: true, ranged: true},
	nbd.CmdBlockStatus: {known: true, flags: nbd.FlagFUA | nbd.FlagReqOne, ranged: true},
}

// payload is how many bytes follow a request.
func payload(r *nbd.Request) int64 {
	if r.Command == nbd.CmdWrite {
		return int64(r.Length)
	}
	return 0
}

func errTooLong(n uint64) error {
	return fmt.Errorf("a write of %d bytes, %d is the most", n, nbd.MaxPayload)
}

// check says why a request cannot be carried out, 0 if it can, and works out what it costs.
func (s *session) check(t *task) nbd.Errno {
	if int(t.Command) >= len(commands) || !commands[t.Command].known {
		return nbd.EINVAL
	}
	c := &commands[t.Command]
	flags := c.flags
	if !s.structured {
		flags &^= nbd.FlagDF
	}
	switch {
	case t.Flags&^flags != 0:
		return nbd.EINVAL
	case c.changes && !s.export.config.Writable:
		return nbd.EPERM
	case c.limited && t.Length > nbd.MaxPayload:
		return nbd.EINVAL
	}
	if size := uint64(s.export.backend.Size()); c.ranged && (t.Offset > size || t.Length > size-t.Offset) {
		if t.Command == nbd.CmdWrite || t.Command == nbd.CmdWriteZeroes {
			return nbd.ENOSPC
		}
		return nbd.EINVAL
	}
	switch t.Command {
	case nbd.CmdRead, nbd.CmdWrite:
		t.cost = int64(t.Length)
	case nbd.CmdBlockStatus:
		if !s.allocation || t.Length == 0 {
			return nbd.EINVAL
		}
		t.cost = statusBytes
	}
	return 0
}

// perform carries out a request that has passed the gate, and answers it. The result says whether the batch has room for
// more.
func (s *session) perform(ctx context.Context, gate *block.Gate, t *task) (more bool) {
	began := time.Now()
	err := s.do(ctx, t)
	gate.Leave()
	s.pace.add(&t.Request, time.Since(began))
	return s.answer(t, nbd.ErrnoOf(err))
}

func (s *session) do(ctx context.Context, t *task) error {
	// Through the edge: the gate is passed already.
	disk, off, n := &s.export.backend.Edge, int64(t.Offset), int64(t.Length)
	var flags block.Flags
	if t.Flags&nbd.FlagFUA != 0 || s.export.config.WriteThrough {
		flags = block.FUA
	}
	switch t.Command {
	case nbd.CmdRead:
		if n == 0 {
			return nil
		}
		t.data = block.GetBuffer(int(n))
		return disk.ReadAt(ctx, t.data.B, off)
	case nbd.CmdWrite:
		if n == 0 {
			return disk.WriteAt(ctx, nil, off, flags)
		}
		return disk.WriteAt(ctx, t.data.B, off, flags)
	case nbd.CmdFlush:
		return disk.Flush(ctx)
	case nbd.CmdTrim:
		if err := disk.Discard(ctx, off, n); err != nil || flags == 0 {
			return err
		}
		return disk.Flush(ctx)
	case nbd.CmdWriteZeroes:
		if t.Flags&nbd.FlagNoHole == 0 {
			flags |= block.MayUnmap
		}
		if t.Flags&nbd.FlagFastZero != 0 {
			flags |= block.NoFallback
		}
		return disk.WriteZeroes(ctx, off, n, flags)
	case nbd.CmdBlockStatus:
		return s.status(ctx, t, disk)
	}
	return nil // CmdCache is a hint
}

// status describes the range of a task: neighbours of equal status as one extent, as many extents as fit.
func (s *session) status(ctx context.Context, t *task, disk *block.Edge) error {
	t.data = block.GetBuffer(statusBytes)
	b := binary.BigEndian.AppendUint32(t.data.B[:0], allocationID)
	most := (statusBytes - len(b)) / nbd.DescriptorSize
	if t.Flags&nbd.FlagReqOne != 0 {
		most = 1
	}
	var last nbd.Descriptor
	off, rest := int64(t.Offset), int64(t.Length)
	for range statusQuestions {
		extent, err := disk.BlockStatus(ctx, off, rest)
		if err != nil {
			return err
		}
		n := min(extent.Len, rest)
		if n <= 0 {
			return fail(block.KindIO, "no block status at offset %d of node '%s'", off, disk.Node().Name())
		}
		if state := stateOf(extent.Status); last.Length > 0 && state != last.Flags {
			b = last.Append(b)
			most--
			last = nbd.Descriptor{Flags: state}
		} else {
			last.Flags = state
		}
		if most == 0 {
			break
		}
		last.Length += uint32(n)
		off, rest = off+n, rest-n
		if rest == 0 {
			break
		}
	}
	if most > 0 && last.Length > 0 {
		b = last.Append(b)
	}
	t.data.B = b
	return nil
}

// stateOf is what base:allocation says of an extent.
func stateOf(status block.Status) uint32 {
	var state uint32
	if status&block.StatusData == 0 {
		state |= nbd.StateHole
	}
	if status&block.StatusZero != 0 {
		state |= nbd.StateZero
	}
	return state
}
