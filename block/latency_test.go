// SPDX-License-Identifier: Apache-2.0

package block

import (
	"testing"
	"time"
)

func TestLatency(t *testing.T) {
	for _, c := range []struct {
		took   time.Duration
		bucket int
	}{
		{-time.Second, 0}, {0, 0}, {1, 0}, {2048, 0}, {2049, 1}, {4096, 1}, {4097, 2}, {time.Millisecond, 9},
		{1 << 34, 23}, {1<<34 + 1, 24}, {time.Hour, 24}, {1<<63 - 1, 24},
	} {
		var l Latency
		l.Observe(c.took)
		s := l.Read()
		if s.Buckets[c.bucket] != 1 || s.Count() != 1 {
			t.Errorf("%v is in %v, want bucket %d", c.took, s.Buckets, c.bucket)
		}
		if bound := LatencyBound(c.bucket); bound != 0 && c.took > bound {
			t.Errorf("%v is above the bound %v of its bucket", c.took, bound)
		}
		if c.bucket > 0 && c.took <= LatencyBound(c.bucket-1) {
			t.Errorf("%v is within the bound of the bucket before", c.took)
		}
	}
	var l Latency
	l.Observe(time.Second)
	sum := l.Read()
	sum.Add(l.Read())
	if sum.Count() != 2 || sum.Sum != 2*time.Second || l.Total() != time.Second {
		t.Errorf("%d requests, %v and %v", sum.Count(), sum.Sum, l.Total())
	}
}

func BenchmarkLatency(b *testing.B) {
	var l Latency
	b.ReportAllocs()
	for b.Loop() {
		began := since()
		l.Observe(since() - began)
	}
}
