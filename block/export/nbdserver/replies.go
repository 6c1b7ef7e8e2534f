// SPDX-License-Identifier: Apache-2.0

package nbdserver

import (
	"crypto/tls"
	"net"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/nbd"
)

const (
	// batchRequests and batchBytes end a batch of replies though more requests are at hand, so that the client has
	// something to do meanwhile, and data leaves while a processor's cache still has it.
	batchRequests = 32
	batchBytes    = 256 << 10

	// maxHead is the most bytes of a reply that are not in a buffer.
	maxHead = nbd.ExtendedChunkSize + 8
)

// replies are answers on their way to the client: heads lie one behind the other, data in buffers of their own.
type replies struct {
	heads    []byte // never grows beyond its capacity, since parts point into it
	parts    [][]byte
	from     int  // where in heads the last part of heads begins, or the next one will
	joined   bool // the last part is of heads
	buffers  []*block.Buffer
	requests int
	cost     int64 // what the requests count of maxBytes

	vector  net.Buffers // parts while they are written, which eats up the slice
	scratch []byte      // for an encrypted connection: parts in one piece
}

func newReplies(maxRequests int) *replies {
	return &replies{
		heads:   make([]byte, 0, maxRequests*maxHead),
		parts:   make([][]byte, 0, 2*maxRequests),
		buffers: make([]*block.Buffer, 0, maxRequests),
	}
}

// full says whether the batch is worth a system call.
func (r *replies) full() bool { return r.requests >= batchRequests || r.cost >= batchBytes }

// add ends one reply: its head is what was appended to heads since the reply before, its data is in a buffer that r
// releases, or nil.
func (r *replies) add(data *block.Buffer, cost int64) {
	r.requests++
	r.cost += cost
	switch head := r.heads[r.from:]; {
	case len(head) == 0: // all of it is in data
	case r.joined:
		r.parts[len(r.parts)-1] = head
	default:
		r.parts = append(r.parts, head)
		r.joined = true
	}
	if data != nil {
		r.parts = append(r.parts, data.B)
		r.buffers = append(r.buffers, data)
		r.joined, r.from = false, len(r.heads)
	}
}

// write sends everything.
func (r *replies) write(to net.Conn) (err error) {
	if len(r.parts) == 1 {
		_, err = to.Write(r.parts[0])
		return err
	}
	if _, encrypted := to.(*tls.Conn); encrypted {
		r.scratch, err = writeGathered(to, r.parts, r.scratch)
		return err
	}
	r.vector = r.parts
	_, err = r.vector.WriteTo(to)
	r.vector = nil
	return err
}

// reset makes r empty and gives its buffers back.
func (r *replies) reset() {
	for i, b := range r.buffers {
		b.Release()
		r.buffers[i] = nil
	}
	r.heads, r.parts, r.buffers = r.heads[:0], r.parts[:0], r.buffers[:0]
	r.from, r.joined, r.requests, r.cost = 0, false, 0, 0
}
