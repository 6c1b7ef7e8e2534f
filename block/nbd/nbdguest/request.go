// SPDX-License-Identifier: Apache-2.0

package nbdguest

import (
	"context"
	"fmt"
)

// Command is a request to be sent.
type Command struct {
	Type   CommandType
	Flags  CommandFlags
	Offset uint64
	// Length in bytes. May be left zero for a write, and for a read with Data.
	Length uint32
	// Data is what to write, or where to read to; a read without it allocates.
	// It belongs to the request until Wait has returned its outcome.
	Data []byte
}

// Extent is a range of the export with one status.
type Extent struct {
	Offset, Length uint64
	Flags          uint32 // StateHole and StateZero, for base:allocation
}

// Request is one that was submitted.
type Request struct {
	command Command
	cookie  uint64
	done    chan struct{} // closed when the outcome below is final

	// Guarded by the mutex of the client. The outcome is final when both the
	// request has left and the reply has come: a server may refuse a write
	// before it has read all of it.
	sent, replied bool

	// The rest belongs to the client's reader until done is closed.
	err     error
	covered spans               // what of a read has arrived
	extents map[uint32][]Extent // block status by context number
	names   map[uint32]string   // contexts by number, never changed
}

// Wait gives the outcome: nil, a *ReplyError, or why the connection ended.
// When ctx ends first, it says so, and the request stays in flight.
func (r *Request) Wait(ctx context.Context) error {
	select {
	case <-r.done:
		return r.err
	default:
	}
	select {
	case <-r.done:
		return r.err
	case <-ctx.Done():
		return fmt.Errorf("NBD %s of %d bytes at %d: no reply yet: %w",
			r.command.Type, r.command.Length, r.command.Offset, context.Cause(ctx))
	}
}

// Done is closed when Wait would not block.
func (r *Request) Done() <-chan struct{} { return r.done }

// Data is what a read got. It may be used after Wait returned nil.
func (r *Request) Data() []byte { return r.command.Data }

// Extents is what a block status request learnt about one metadata context;
// clipped to the range asked for, of which it may cover only the first part.
// It may be used after Wait returned nil.
func (r *Request) Extents(context string) []Extent {
	for id, extents := range r.extents {
		if r.names[id] == context {
			return extents
		}
	}
	return nil
}

// spans is a set of byte ranges that do not overlap, in ascending order.
type spans []span

type span struct{ start, end uint64 }

// add puts in a range and tells whether it was disjoint from all others.
// Neighbours are joined, so that a reply in order stays one span.
func (s *spans) add(start, end uint64) bool {
	list := *s
	at := len(list)
	for at > 0 && list[at-1].start >= end {
		at--
	}
	// All spans from at on begin behind the new one.
	if at > 0 && list[at-1].end > start {
		return false
	}
	joinLeft := at > 0 && list[at-1].end == start
	joinRight := at < len(list) && list[at].start == end
	switch {
	case joinLeft && joinRight:
		list[at-1].end = list[at].end
		list = append(list[:at], list[at+1:]...)
	case joinLeft:
		list[at-1].end = end
	case joinRight:
		list[at].start = start
	default:
		list = append(list, span{})
		copy(list[at+1:], list[at:])
		list[at] = span{start, end}
	}
	*s = list
	return true
}

// covers tells whether the whole range is in the set.
func (s spans) covers(start, end uint64) bool {
	return start == end || len(s) == 1 && s[0].start == start && s[0].end == end
}
