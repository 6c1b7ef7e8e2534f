// SPDX-License-Identifier: Apache-2.0

package throttle

import (
	"math"
	"time"
)

// quick is the time whose share of a rate a bucket holds where there is no other measure for it.
const quick = 0.1 // seconds

// bucket is one limit and what was poured in and did not leak yet.
type bucket struct {
	limit        Limit
	level, burst float64
}

func (b *bucket) leak(seconds float64) {
	b.level = max(0, b.level-float64(b.limit.Average)*seconds)
	b.burst = max(0, b.burst-float64(b.limit.Max)*seconds)
}

func (b *bucket) pour(units float64) {
	if b.limit.Average == 0 {
		return
	}
	b.level += units
	if b.limit.MaxLength > 1 {
		b.burst += units
	}
}

// wait is the time until the bucket is not overfull.
func (b *bucket) wait() time.Duration {
	average, burst := float64(b.limit.Average), float64(b.limit.Max)
	if average == 0 {
		return 0
	}
	room := average * quick
	if burst > 0 {
		room = burst * float64(max(b.limit.MaxLength, 1))
	}
	if over := b.level - room; over > 0 {
		return seconds(over / average)
	}
	if over := b.burst - burst*quick; over > 0 && b.limit.MaxLength > 1 {
		return seconds(over / burst)
	}
	return 0
}

// seconds rounds up, so that after the wait nothing is left to wait for.
func seconds(s float64) time.Duration {
	if s >= math.MaxInt64/float64(time.Second) {
		return math.MaxInt64
	}
	return time.Duration(math.Ceil(s * float64(time.Second)))
}
