// SPDX-License-Identifier: Apache-2.0

package nbd

import (
	"fmt"
	"slices"
	"sync"

	"github.com/blkmirror/blkmirror/block"
	wire "github.com/blkmirror/blkmirror/block/nbd"
)

// phase is how far a request has come on its connection.
type phase uint8

const (
	queued  phase = iota // no byte of it was sent, and it can be taken back
	sending              // the writer has it
	sent
)

// request is one request on its way. Its caller owns it but between submit and the token in done.
type request struct {
	command wire.Command
	flags   wire.CommandFlags
	off, n  int64
	payload []byte // of a write, the caller's
	into    []byte // of a read, the caller's

	done    chan struct{} // gets one token when the outcome is there
	err     error         // outcome
	lost    bool          // outcome: the connection ended first
	extents []extent      // outcome of a block status request

	// Guarded by the connection's table.
	cookie    uint64
	phase     phase
	replied   bool // the last of the reply came, or none will come
	settled   bool // done has or had its token
	abandoned bool // the caller has gone; the connection owns the request

	detached bool // guarded by the connection's input: into is not ours any more

	failure error   // the first error of a reply that is not over
	cover   []cover // the parts of into that were filled, in order, never touching
}

// cover is a part of a read, relative to its start.
type cover struct{ from, to int64 }

// maxCovers bounds the pieces in which a server may send a read out of order.
const maxCovers = 1 << 10

var requests = sync.Pool{New: func() any { return &request{done: make(chan struct{}, 1)} }}

func newRequest(c wire.Command, off, n int64) *request {
	r := requests.Get().(*request)
	r.command, r.off, r.n = c, off, n
	return r
}

func (r *request) recycle() {
	*r = request{done: r.done, extents: r.extents[:0], cover: r.cover[:0]}
	requests.Put(r)
}

// again makes r as it was before it was submitted.
func (r *request) again() {
	r.err, r.lost, r.extents, r.failure, r.cover = nil, false, r.extents[:0], nil, r.cover[:0]
	r.cookie, r.phase, r.replied, r.settled, r.abandoned, r.detached = 0, queued, false, false, false, false
}

// changes says whether a request may change what the disk reads as.
func (r *request) changes() bool {
	return r.command == wire.CmdWrite || r.command == wire.CmdWriteZeroes || r.command == wire.CmdTrim
}

// fill notes that a part of a read is coming, which must be inside of it and new.
func (r *request) fill(off uint64, n int64) (at int64, err error) {
	if r.command != wire.CmdRead || off < uint64(r.off) || n <= 0 || off-uint64(r.off) > uint64(r.n) ||
		n > r.n-int64(off-uint64(r.off)) {
		return 0, fmt.Errorf("a part of %d bytes at %d in the reply to %s", n, off, r)
	}
	at = int64(off) - r.off
	part := cover{at, at + n}
	if last := len(r.cover) - 1; last >= 0 && r.cover[last].to == at { // the usual order
		r.cover[last].to = part.to
		return at, nil
	}
	i, _ := slices.BinarySearchFunc(r.cover, at, func(c cover, at int64) int {
		if c.to <= at {
			return -1
		}
		return 1
	})
	if i < len(r.cover) && r.cover[i].from < part.to {
		return 0, fmt.Errorf("a part at %d for the second time in the reply to %s", off, r)
	}
	if i > 0 && r.cover[i-1].to == part.from {
		r.cover[i-1].to = part.to
		if i < len(r.cover) && r.cover[i].from == part.to {
			r.cover[i-1].to = r.cover[i].to
			r.cover = slices.Delete(r.cover, i, i+1)
		}
		return at, nil
	}
	if i < len(r.cover) && r.cover[i].from == part.to {
		r.cover[i].from = part.from
		return at, nil
	}
	if len(r.cover) == maxCovers {
		return 0, fmt.Errorf("more than %d scattered parts in the reply to %s", maxCovers, r)
	}
	r.cover = slices.Insert(r.cover, i, part)
	return at, nil
}

// complete is the error of a reply that is over and lacks something.
func (r *request) complete() error {
	switch {
	case r.failure != nil:
		return nil
	case r.command == wire.CmdRead && (len(r.cover) != 1 || r.cover[0] != cover{0, r.n}):
		return fmt.Errorf("only parts in the reply to %s", r)
	case r.command == wire.CmdBlockStatus && len(r.extents) == 0:
		return fmt.Errorf("no extent in the reply to %s", r)
	}
	return nil
}

func (r *request) String() string {
	return fmt.Sprintf("a %s of %d bytes at %d", r.command, r.n, r.off)
}

// serverError is what a server answers to a request that failed.
func serverError(e wire.Errno, message string) error {
	if e == wire.ENOTSUP && message == "" {
		return block.NotSupported
	}
	kind := e.Kind()
	err := fmt.Errorf("%s (the NBD server answered %w)", kind, e)
	if message != "" {
		err = fmt.Errorf("%s (the NBD server answered %w: %s)", kind, e, printable(message))
	}
	return &block.Error{Kind: kind, Op: block.OpGraph, Err: err}
}
