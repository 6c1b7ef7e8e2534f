// SPDX-License-Identifier: Apache-2.0

package nbdserver

import (
	"context"
	"encoding/binary"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/nbd"
)

// task is a request under way.
type task struct {
	nbd.Request
	cost int64         // what it counts of maxBytes
	data *block.Buffer // of a write, or of the reply; nil if there is none

	whole    bool          // data is all of the reply, with the heads of its chunks
	contexts []metaContext // what block status is about
}

// admit counts a request in, if there are room and memory for it.
func (s *session) admit(ctx context.Context, t *task) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.fitsLocked(t) && s.memory.TryTake(t.cost) && s.countLocked(ctx, t)
}

// admitLater waits until there are room and memory. Others are at work and make room; if the session breaks, all that is
// under way ends. Memory may be held by other clients; that wait ends with ctx.
func (s *session) admitLater(ctx context.Context, t *task) error {
	s.mu.Lock()
	for !s.fitsLocked(t) {
		s.mu.room.Wait()
	}
	s.mu.Unlock()
	// There stays room meanwhile: only whoever has the turn, which is the caller, makes it less.
	if err := s.memory.Take(ctx, t.cost); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.countLocked(ctx, t)
	return nil
}

// fitsLocked says whether the client may have one more request under way.
func (s *session) fitsLocked(t *task) bool {
	if s.mu.requests >= s.maxRequests || s.mu.bytes+t.cost > maxBytes {
		return false
	}
	// What is read faster than the client takes it makes nothing but cold memory.
	return t.Command != nbd.CmdRead || !s.mu.writing || s.mu.unsent < maxUnsent
}

// countLocked counts a request in, whose memory was taken.
func (s *session) countLocked(ctx context.Context, t *task) bool {
	if s.mu.requests > 0 {
		s.deep = deepFor
	} else if s.deep > 0 {
		s.deep--
	}
	s.mu.requests++
	s.mu.bytes += t.cost
	s.spareLocked(ctx)
	return true
}

// forget takes a request back that was counted in and will not be answered.
func (s *session) forget(t *task) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.leaveLocked(1, t.cost)
}

func (s *session) leaveLocked(requests int, cost int64) {
	s.mu.requests -= requests
	s.mu.bytes -= cost
	s.memory.Give(cost)
	s.mu.room.Signal() // only whoever has the turn waits
}

// answer puts the reply to a task behind those that wait to be written, and takes its buffer over. The result says
// whether the batch has room for more.
func (s *session) answer(t *task, failure nbd.Errno) (more bool) {
	drop, reply := t.data, (*block.Buffer)(nil)
	if failure == 0 && t.Command != nbd.CmdWrite {
		drop, reply = nil, t.data
	}
	s.mu.Lock()
	switch {
	case s.mu.broken:
		drop, reply = t.data, nil
		s.leaveLocked(1, t.cost)
		more = true
	default:
		if reply == nil {
			s.leaveLocked(0, t.cost)
			t.cost = 0
		}
		s.mu.out.heads = s.appendHead(s.mu.out.heads, t, failure, reply)
		s.mu.out.add(reply, t.cost)
		s.mu.unsent += t.cost
		more = !s.mu.out.full()
	}
	s.mu.Unlock()
	if drop != nil {
		drop.Release()
	}
	return more
}

// appendHead adds the head of a reply, which is all of it but for the data.
func (s *session) appendHead(b []byte, t *task, failure nbd.Errno, data *block.Buffer) []byte {
	switch {
	case s.form == simple || s.form == structured && t.Command != nbd.CmdRead && t.Command != nbd.CmdBlockStatus:
		return nbd.SimpleReply{Error: failure, Cookie: t.Cookie}.Append(b)
	case failure != 0:
		b = s.appendChunk(b, t, nbd.ChunkDone, nbd.ChunkError, nbd.ErrorSize)
		return nbd.AppendError(b, failure)
	case data == nil:
		return s.appendChunk(b, t, nbd.ChunkDone, nbd.ChunkNone, 0)
	case t.whole:
		return b
	}
	b = s.appendChunk(b, t, nbd.ChunkDone, nbd.ChunkOffsetData, uint64(len(data.B))+8)
	return binary.BigEndian.AppendUint64(b, t.Offset)
}

// appendChunk adds the header of a chunk with length bytes of payload.
func (s *session) appendChunk(b []byte, t *task, flags nbd.ChunkFlags, kind nbd.ChunkType, length uint64) []byte {
	if s.form == extended {
		return nbd.ExtendedChunk{Flags: flags, Type: kind, Cookie: t.Cookie, Offset: t.Offset, Length: length}.Append(b)
	}
	return nbd.Chunk{Flags: flags, Type: kind, Cookie: t.Cookie, Length: uint32(length)}.Append(b)
}

// flush writes the replies at hand, unless somebody is doing so, who will then go on with these.
func (s *session) flush() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.writing {
		return
	}
	s.mu.writing = true
	for s.mu.out.requests > 0 {
		batch := s.mu.out
		s.mu.out, s.mu.empty = s.mu.empty, nil
		broken := s.mu.broken
		s.mu.Unlock()
		if !broken {
			if err := batch.write(s.stream); err != nil {
				s.kill(err)
			}
		}
		requests, cost := batch.requests, batch.cost
		batch.reset()
		s.mu.Lock()
		s.mu.empty = batch
		s.mu.unsent -= cost
		s.leaveLocked(requests, cost)
	}
	s.mu.writing = false
}

// flushInTurn writes the replies at hand. A client that does not read them may keep it waiting, so the turn is lent
// meanwhile; false if it is gone.
func (s *session) flushInTurn(ctx context.Context) bool {
	s.mu.Lock()
	idle := s.mu.out.requests == 0 || s.mu.writing
	if !idle {
		s.spareLocked(ctx)
	}
	s.mu.Unlock()
	if idle {
		return true
	}
	loan := s.lend()
	s.flush()
	return s.reclaim(loan)
}
