// SPDX-License-Identifier: Apache-2.0

package mirror

import (
	"sync/atomic"
	"time"

	"github.com/blkmirror/blkmirror/job"
)

// With max-guest-latency the copy gives way to guests: the filter times their requests on the source, and when these take longer
// than they may, the loop lowers the speed of the copy by half; while they do not, it raises it a little at a time. What a guest
// waits for the target is not counted: a slower copy does not make that shorter. Nor is the size of a request taken into account.

const (
	// latencyUnit is the unit of the estimate; 32 bits of it are 274 s.
	latencyUnit = 64 * time.Nanosecond
	// Each request moves the estimate by one part in latencyPart of what it differs.
	latencyPart = 16
	// The estimate lies so many mean excesses above the mean: about one request in twenty-five to a hundred takes longer.
	latencyExcesses = 8

	// How often the speed is decided about.
	brakeEvery = 100 * time.Millisecond
	// After the speed was lowered, it is not lowered again before so many requests have shown what came of that, or so much time
	// has passed.
	brakeRequests, brakeWait = 2 * latencyPart, 500 * time.Millisecond
	// The lowest speed in bytes per second, and how it relates to what guests make dirty: the copy goes on and gets to its end.
	leastSpeed, leastPart = 1 << 20, 1.25
	// The speed is raised by one part in raisePart of the highest that was seen, and by least at least. Well above what was seen,
	// it is not held any more.
	raisePart, raiseLeast = 32, 256 << 10
)

// latency estimates how long guests' requests take on the source, in the worse cases: a moving mean, and a moving mean of what
// they take beyond that. It takes no lock and allocates nothing.
type latency struct {
	most     atomic.Int64  // nanoseconds that they may take; 0: nothing is measured
	state    atomic.Uint64 // the mean in the upper half, the mean excess in the lower one, in latencyUnit
	requests atomic.Int64  // that were measured
}

// begin is when a guest's request begins; nothing if requests are not measured.
func (l *latency) begin() (began time.Time) {
	if l.most.Load() != 0 {
		began = time.Now()
	}
	return began
}

// end takes in a request that has ended on the source.
func (l *latency) end(began time.Time) {
	if !began.IsZero() {
		l.add(time.Since(began))
	}
}

func (l *latency) add(took time.Duration) {
	t := min(int64(took/latencyUnit), 1<<32-1)
	for {
		old := l.state.Load()
		mean, excess := int64(old>>32), int64(old&(1<<32-1))
		if old == 0 {
			mean = t
		}
		excess += (max(t-mean, 0) - excess) / latencyPart
		mean += (t - mean) / latencyPart
		if l.state.CompareAndSwap(old, uint64(mean)<<32|uint64(excess)) {
			break
		}
	}
	l.requests.Add(1)
}

// estimate is what requests have taken of late.
func (l *latency) estimate() time.Duration {
	s := l.state.Load()
	return time.Duration(s>>32+latencyExcesses*(s&(1<<32-1))) * latencyUnit
}

// brake decides how fast the copy may be so that guests' requests take no longer than they may. It has no clock of its own.
type brake struct {
	limiter job.Limiter
	speed   int64 // bytes per second, 0 for no limit

	at       time.Time // of the last decision
	copied   int64     // bytes then
	requests int64     // of guests then
	best     float64   // the highest speed that was seen, in bytes per second
	lowered  time.Time // when the speed was lowered last
	shown    int64     // requests then
}

// observation is what a brake decides on.
type observation struct {
	most, estimate   time.Duration
	copied, requests int64   // bytes and requests so far
	dirtied          float64 // bytes per second that guests make dirty
}

// decide sets the speed, if it is time.
func (b *brake) decide(now time.Time, o observation) {
	if o.most == 0 {
		b.speed, b.at = 0, time.Time{}
		b.limiter.SetSpeed(0, now)
		return
	}
	passed := now.Sub(b.at)
	if passed < brakeEvery {
		return
	}
	copied, requests := o.copied-b.copied, o.requests-b.requests
	fresh := b.at.IsZero() || passed > 10*brakeEvery
	b.at, b.copied, b.requests = now, o.copied, o.requests
	if fresh {
		return // the job has just begun to copy again
	}
	done := float64(copied) / passed.Seconds()
	b.best = max(b.best, done)
	switch hurt := requests > 0 && o.estimate > o.most; {
	case hurt && o.requests-b.shown < brakeRequests && now.Sub(b.lowered) < brakeWait:
	case hurt:
		if b.speed == 0 || done < float64(b.speed) {
			b.speed = int64(done)
		}
		b.speed = max(b.speed/2, leastSpeed, int64(leastPart*o.dirtied))
		b.lowered, b.shown = now, o.requests
	case b.speed > 0:
		b.speed += max(int64(b.best/raisePart), raiseLeast)
		if float64(b.speed) > 2*b.best {
			b.speed = 0
		}
	}
	b.limiter.SetSpeed(b.speed, now)
}

// due is when the next decision is, after which the copy may go faster.
func (b *brake) due(now time.Time) time.Duration {
	return max(brakeEvery-now.Sub(b.at), time.Millisecond)
}

// brake has the loop look after guests' latency. It returns when it is to do so again, zero if that is not needed before
// something happens.
func (l *loop) brakeFor(now time.Time) time.Duration {
	m := l.m
	o := observation{most: time.Duration(m.latency.most.Load()), estimate: m.latency.estimate(), requests: m.latency.requests.Load()}
	o.copied = l.moved
	m.mu.Lock()
	o.dirtied = m.rates.dirtied
	work := m.planner.d.Len() > 0 || l.inFlight > 0
	m.mu.Unlock()
	was := l.brake.speed
	if l.brake.decide(now, o); l.brake.speed != was {
		m.mu.Lock()
		m.braked = l.brake.speed
		m.mu.Unlock()
	}
	if o.most == 0 || !work {
		return 0
	}
	return l.brake.due(now)
}

// SetMaxGuestLatency changes how long guests' requests may take on the source, 0 for as long as they do.
func (m *Mirror) SetMaxGuestLatency(most time.Duration) {
	m.latency.most.Store(int64(most))
	m.latency.state.Store(0)
	m.job.Poke()
}

// ---- The speed of the copy: what the operator allows, and what guests do

// slack is how long the next piece has to wait for the speed; zero or less if it may start.
func (l *loop) slack(now time.Time) time.Duration {
	l.limiter.SetSpeed(l.m.job.Speed(), now)
	return max(l.limiter.Wait(now), l.brake.limiter.Wait(now))
}

// largest is the largest piece that the speed allows to pass in one go, at most most.
func (l *loop) largest(most int64) int64 {
	chunk := l.m.planner.d.Granularity()
	return l.brake.limiter.Piece(chunk, l.limiter.Piece(chunk, most))
}

// spend accounts for n bytes of work.
func (l *loop) spend(n int64, now time.Time) {
	l.limiter.Take(n, now)
	l.brake.limiter.Take(n, now)
}
