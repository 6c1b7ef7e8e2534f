// SPDX-License-Identifier: Apache-2.0

package job

import "time"

const (
	// MaxCrew is the most pieces that a job has in flight.
	MaxCrew = 16

	// A size of the crew is judged by what it does in that time at least, and in that many pieces for each of it and some more.
	crewWindow = 20 * time.Millisecond
	crewPieces = 4
	// Twice as many have to do that much more, or half as many that much of what was done before, to stay.
	crewGain, crewKeep = 1.2, 0.97
	// How long a size stays after another one was tried in vain, at first and at most.
	crewFirst, crewMost = time.Second, 30 * time.Second
)

// Crew finds out how many pieces of work a job should have in flight: many where each takes long but others do not slow it
// down, as over a network; few where one keeps the disk busy, or a processor. It doubles or halves the number and compares what gets
// done. It has no clock, and does not lock.
type Crew struct {
	size, most int

	since  time.Time // when the window began; zero if the next piece begins it
	pieces int
	bytes  int64

	was    int     // the size before a try; 0 while none is under way
	before float64 // bytes per second then
	down   bool    // the next try is a smaller one
	next   time.Time
	rest   time.Duration
}

// NewCrew is a crew that begins with a size.
func NewCrew(first, most int) Crew {
	most = min(most, MaxCrew)
	return Crew{size: min(first, most), most: most, rest: crewFirst}
}

// Size is how many pieces may be in flight now, and Most how many ever.
func (c *Crew) Size() int { return c.size }

// Most is the most pieces that may ever be in flight.
func (c *Crew) Most() int { return c.most }

// Idle tells that something other than the size holds the work up: what was measured says nothing of it.
func (c *Crew) Idle() { c.since = time.Time{} }

// Done tells that a piece of n bytes has ended at time now.
func (c *Crew) Done(n int64, now time.Time) {
	if n == 0 {
		return
	}
	if c.since.IsZero() {
		c.since, c.pieces, c.bytes = now, 0, 0
		return
	}
	c.pieces++
	c.bytes += n
	passed := now.Sub(c.since)
	if passed < crewWindow || c.pieces < 2*c.size+crewPieces {
		return
	}
	c.judge(float64(c.bytes)/passed.Seconds(), now)
	c.since, c.pieces, c.bytes = now, 0, 0
}

// judge takes what was done at the present size, in bytes per second.
func (c *Crew) judge(rate float64, now time.Time) {
	switch {
	case c.was == 0:
		if now.Before(c.next) {
			return
		}
		other := min(2*c.size, c.most)
		if c.down && c.size > 1 || c.size == c.most {
			other = (c.size + 1) / 2
		}
		if other != c.size {
			c.was, c.before, c.size = c.size, rate, other
		}
	case c.size > c.was && rate >= crewGain*c.before, c.size < c.was && rate >= crewKeep*c.before:
		c.was, c.rest = 0, crewFirst
	default:
		c.size, c.was = c.was, 0
		c.down = !c.down
		c.next = now.Add(c.rest)
		c.rest = min(2*c.rest, crewMost)
	}
}
