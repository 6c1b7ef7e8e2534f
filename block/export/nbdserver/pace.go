// SPDX-License-Identifier: Apache-2.0

package nbdserver

import (
	"sync/atomic"
	"time"

	"github.com/blkmirror/blkmirror/block/nbd"
)

const (
	// slowAfter is how long requests of a sort must have taken of late to be carried out beside others. It is several
	// times what handing the turn on costs.
	slowAfter = 50 * time.Microsecond
	// paceLimit bounds what one outlier, such as a goroutine that lost its processor, can do to the mean.
	paceLimit = 4 * slowAfter
	// bigRequest divides the sorts.
	bigRequest = 64 << 10
	// copyBytes is how many bytes one copies in a microsecond. That time does not count: it is spent working, not waiting,
	// and cold buffers on other processors make it longer.
	copyBytes = 4 << 10
)

// sort is what requests have in common that take about as long.
type sort uint8

const sorts = 2 * int(nbd.CmdBlockStatus+1)

func sortOf(r *nbd.Request) sort {
	s := sort(r.Command) * 2
	if r.Length > bigRequest {
		s++
	}
	return s
}

// pace is how long requests took lately, by sort: a moving mean in nanoseconds. Updates may get lost when two goroutines
// make them at once, which only makes it a little older.
type pace [sorts]atomic.Int64

func (p *pace) add(r *nbd.Request, took time.Duration) {
	if r.Command == nbd.CmdRead || r.Command == nbd.CmdWrite {
		took = max(0, took-time.Duration(r.Length/copyBytes)*time.Microsecond)
	}
	mean := &p[sortOf(r)]
	old := mean.Load()
	mean.Store(old + (int64(min(took, paceLimit))-old)/8)
}

func (p *pace) slow(s sort) bool { return p[s].Load() > int64(slowAfter) }
