// SPDX-License-Identifier: Apache-2.0

package nbdserver

import (
	"slices"
	"sync/atomic"
	"time"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/nbd"
)

// kinds is the number of commands that take requests to a disk.
const kinds = int(nbd.CmdBlockStatus) + 1

// traffic counts the requests of one session. Each costs a few atomic additions, of counters that only its own connection changes.
type traffic struct {
	took    [kinds]block.Latency
	bytes   [kinds]atomic.Int64
	failed  atomic.Int64
	refused atomic.Int64
}

func (t *traffic) count(r *nbd.Request, took time.Duration, err error) {
	t.took[r.Command].Observe(took)
	if err != nil {
		t.failed.Add(1)
	} else if r.Command != nbd.CmdBlockStatus {
		t.bytes[r.Command].Add(int64(r.Length))
	}
}

func (t *traffic) read() (s Traffic) {
	for i := range kinds {
		s.Took[i], s.Bytes[i] = t.took[i].Read(), t.bytes[i].Load()
	}
	s.Failed, s.Refused = t.failed.Load(), t.refused.Load()
	return s
}

// Traffic is what requests of clients came to. The arrays are indexed by [nbd.Command].
type Traffic struct {
	Took    [kinds]block.Latencies // from when the gate was passed to when the disk had answered
	Bytes   [kinds]int64           // of requests that succeeded; of block status there are none
	Failed  int64                  // requests that the disk could not carry out
	Refused int64                  // requests that made no sense or were not allowed
}

func (s *Traffic) add(more Traffic) {
	for i := range kinds {
		s.Took[i].Add(more.Took[i])
		s.Bytes[i] += more.Bytes[i]
	}
	s.Failed += more.Failed
	s.Refused += more.Refused
}

// Connection is one client of an export.
type Connection struct {
	Conn
	Traffic  Traffic
	UnderWay int // requests that were read and not answered yet
}

// Observe tells what clients have asked of the export since it was made, and what those did that are connected, the oldest first.
func (e *Export) Observe() (all Traffic, now []Connection) {
	e.mu.Lock()
	defer e.mu.Unlock()
	all = e.mu.past
	for s := range e.mu.sessions {
		c := Connection{Conn: Conn{ID: s.id, Remote: s.remote, Export: e.config.ID}, Traffic: s.traffic.read()}
		all.add(c.Traffic)
		s.mu.Lock()
		c.UnderWay = s.mu.requests
		s.mu.Unlock()
		now = append(now, c)
	}
	slices.SortFunc(now, func(a, b Connection) int { return int(a.ID) - int(b.ID) })
	return all, now
}

// Clients is how many clients are connected, those included that have not chosen an export, and how many have been since the
// server was made.
func (s *Server) Clients() (now int, ever uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.run != nil {
		now = len(s.mu.run.sessions)
	}
	return now, s.mu.lastID
}
