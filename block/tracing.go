// SPDX-License-Identifier: Apache-2.0

package block

import (
	"sync/atomic"
	"time"

	"github.com/blkmirror/blkmirror/block/trace"
)

// tracing is one for the process, as there is one file: requests look at it without knowing a graph.
var tracing atomic.Pointer[trace.Recorder]

// SetTrace has the requests of all nodes recorded from now on, or no more for nil. A request that ends at this moment may be recorded still.
func SetTrace(r *trace.Recorder) { tracing.Store(r) }

// Tracing is where requests are recorded, nil if they are not.
func Tracing() *trace.Recorder { return tracing.Load() }

// took takes note of how long a request took that began at a time on the clock for latencies.
func (n *Node) took(l *Latency, op trace.Op, off, length int64, began time.Duration, err error) {
	took := since() - began
	l.Observe(took)
	if r := tracing.Load(); r != nil {
		r.Record(trace.Request{Took: took, Where: trace.Node, Name: n.name, Op: op, Failed: err != nil, Off: off, Len: length})
	}
}
