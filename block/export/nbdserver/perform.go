// SPDX-License-Identifier: Apache-2.0

package nbdserver

import (
	"context"
	"fmt"
	"time"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/nbd"
	"github.com/blkmirror/blkmirror/block/trace"
)

// commands says of every command which flags it takes, and what it does.
var commands = [...]struct {
	known   bool
	flags   nbd.CommandFlags
	changes bool // writes to the disk
	ranged  bool // has an offset and a length
	limited bool // has data, of which there may be only so much
}{
	nbd.CmdRead:        {known: true, flags: nbd.FlagFUA | nbd.FlagDF, ranged: true, limited: true},
	nbd.CmdWrite:       {known: true, flags: nbd.FlagFUA, changes: true, ranged: true, limited: true},
	nbd.CmdFlush:       {known: true, flags: nbd.FlagFUA},
	nbd.CmdTrim:        {known: true, flags: nbd.FlagFUA, changes: true, ranged: true},
	nbd.CmdCache:       {known: true, flags: nbd.FlagFUA, ranged: true},
	nbd.CmdWriteZeroes: {known: true, flags: nbd.FlagFUA | nbd.FlagNoHole | nbd.FlagFastZero, changes: true, ranged: true},
	nbd.CmdBlockStatus: {known: true, flags: nbd.FlagFUA | nbd.FlagReqOne, ranged: true},
}

// traced are the names of commands in a trace.
var traced = [...]trace.Op{nbd.CmdRead: trace.Read, nbd.CmdWrite: trace.Write, nbd.CmdFlush: trace.Flush, nbd.CmdTrim: trace.Discard,
	nbd.CmdCache: trace.Cache, nbd.CmdWriteZeroes: trace.Zero, nbd.CmdBlockStatus: trace.Status}

// payload is how many bytes follow a request. An extended write ought to say that it has data, but QEMU's does not.
func (s *session) payload(r *nbd.Request) uint64 {
	if s.form == extended && r.Flags&nbd.FlagPayloadLen != 0 || r.Command == nbd.CmdWrite {
		return r.Length
	}
	return 0
}

func errTooLong(n uint64) error {
	return fmt.Errorf("a request with %d bytes of data, %d is the most", n, nbd.MaxPayload)
}

// check says why a request cannot be carried out, 0 if it can, and works out what it costs.
func (s *session) check(t *task) nbd.Errno {
	if int(t.Command) >= len(commands) || !commands[t.Command].known {
		return nbd.EINVAL
	}
	c := &commands[t.Command]
	flags := c.flags
	switch s.form {
	case simple:
		flags &^= nbd.FlagDF
	case extended:
		if t.Command == nbd.CmdWrite || t.Command == nbd.CmdBlockStatus {
			flags |= nbd.FlagPayloadLen
		}
	}
	switch {
	case t.Flags&^flags != 0:
		return nbd.EINVAL
	case c.changes && !s.export.config.Writable:
		return nbd.EPERM
	case c.limited && t.Length > s.maxRequest:
		return nbd.EINVAL
	}
	switch t.Command {
	case nbd.CmdRead, nbd.CmdWrite:
		t.cost = block.BufferBytes(int64(t.Length))
	case nbd.CmdBlockStatus:
		t.contexts = s.contexts
		t.cost = statusCost(len(t.contexts))
		if len(t.contexts) == 0 {
			return nbd.EINVAL
		}
		if t.Flags&nbd.FlagPayloadLen != 0 { // the range is in the payload
			if t.Length < 8+4 || t.Length > uint64(8+4*len(t.contexts)) {
				return nbd.EINVAL
			}
			return 0
		}
	}
	return s.checkRange(&t.Request)
}

func (s *session) checkRange(r *nbd.Request) nbd.Errno {
	if !commands[r.Command].ranged {
		return 0
	}
	if r.Command == nbd.CmdBlockStatus && r.Length == 0 {
		return nbd.EINVAL
	}
	if size := uint64(s.export.backend.Size()); r.Offset > size || r.Length > size-r.Offset {
		if r.Command == nbd.CmdWrite || r.Command == nbd.CmdWriteZeroes {
			return nbd.ENOSPC
		}
		return nbd.EINVAL
	}
	return 0
}

// perform carries out a request that has passed the gate, and answers it. The result says whether the batch has room for
// more.
func (s *session) perform(ctx context.Context, gate *block.Gate, t *task) (more bool) {
	began := time.Now()
	err := s.do(ctx, t)
	gate.Leave()
	took := time.Since(began)
	s.pace.add(&t.Request, took)
	s.traffic.count(&t.Request, took, err)
	if r := block.Tracing(); r != nil {
		r.Record(trace.Request{Took: took, Where: trace.Export, Name: s.export.config.ID, Conn: uint32(s.id), Op: traced[t.Command],
			Failed: err != nil, Off: int64(t.Offset), Len: int64(t.Length)})
	}
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
		if n >= sparseLeast && s.form != simple && t.Flags&nbd.FlagDF == 0 {
			if done, err := s.readSparse(ctx, t, disk); done {
				return err
			}
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
