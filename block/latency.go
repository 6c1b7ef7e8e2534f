// SPDX-License-Identifier: Apache-2.0

package block

import (
	"math/bits"
	"sync/atomic"
	"time"
)

// What the buckets of a [Latency] hold: the first one requests that took no longer than latencyFirst, each further one those that
// took up to twice as long, and the last one all others.
const (
	latencyFirst   = 1 << latencyShift // nanoseconds
	latencyShift   = 11
	latencyBuckets = 25
)

// clockBase is what times of requests are taken from: a difference to it reads one clock, where time.Now reads two.
var clockBase = time.Now()

// since is the time on the clock for latencies.
func since() time.Duration { return time.Since(clockBase) }

// Latency counts how long requests took. To observe one costs two atomic additions.
type Latency struct {
	buckets [latencyBuckets]atomic.Int64
	sum     atomic.Int64 // nanoseconds
}

// Observe counts a request that took d.
func (l *Latency) Observe(d time.Duration) {
	d = max(d, 1)
	l.buckets[min(bits.Len64(uint64(d-1)>>latencyShift), latencyBuckets-1)].Add(1)
	l.sum.Add(int64(d))
}

// Total is how long all requests took together.
func (l *Latency) Total() time.Duration { return time.Duration(l.sum.Load()) }

// Latencies is what a Latency has counted. Requests that end meanwhile may be missing in one of its parts.
type Latencies struct {
	Buckets [latencyBuckets]int64 // requests that took up to LatencyBound of the index, and longer than that of the one before
	Sum     time.Duration
}

// LatencyBound is the longest time in a bucket; there is none for the last one, and it returns 0.
func LatencyBound(bucket int) time.Duration {
	if bucket == latencyBuckets-1 {
		return 0
	}
	return latencyFirst << bucket
}

// Read is a snapshot.
func (l *Latency) Read() (s Latencies) {
	for i := range l.buckets {
		s.Buckets[i] = l.buckets[i].Load()
	}
	s.Sum = time.Duration(l.sum.Load())
	return s
}

// Count is the number of requests.
func (s *Latencies) Count() (n int64) {
	for _, b := range s.Buckets {
		n += b
	}
	return n
}

// Add adds what another one counted.
func (s *Latencies) Add(more Latencies) {
	for i, b := range more.Buckets {
		s.Buckets[i] += b
	}
	s.Sum += more.Sum
}
