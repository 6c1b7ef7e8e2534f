// SPDX-License-Identifier: Apache-2.0

// Package rangelock serialises requests that overlap, first come first served.
//
// A [Lock] holds byte ranges. A range is granted when no range that was asked for before it, granted or still waiting,
// overlaps it. So requests that do not overlap never wait for each other, and of those that do nobody overtakes.
package rangelock

import "sync"

// Lock is a lock on byte ranges. The zero value holds none.
type Lock struct {
	mu struct {
		sync.Mutex
		ranges []*Held // in the order in which they were asked for
	}
}

// Held is one range that was asked for.
type Held struct {
	off, end int64
	blocked  int           // earlier overlapping ranges that are still there
	granted  chan struct{} // closed when blocked falls to zero; nil if it never was above
}

// Lock waits until no earlier overlapping range is left and holds n bytes at offset off from then on.
func (l *Lock) Lock(off, n int64) *Held {
	h := &Held{off: off, end: off + n}
	l.mu.Lock()
	for _, other := range l.mu.ranges {
		if other.overlaps(h) {
			h.blocked++
		}
	}
	l.mu.ranges = append(l.mu.ranges, h)
	if h.blocked > 0 {
		h.granted = make(chan struct{})
	}
	l.mu.Unlock()
	if h.granted != nil {
		<-h.granted
	}
	return h
}

// Unlock gives up a range.
func (l *Lock) Unlock(h *Held) {
	l.mu.Lock()
	defer l.mu.Unlock()
	at := 0
	for l.mu.ranges[at] != h {
		at++
	}
	l.mu.ranges = append(l.mu.ranges[:at], l.mu.ranges[at+1:]...)
	for _, later := range l.mu.ranges[at:] {
		if later.overlaps(h) {
			if later.blocked--; later.blocked == 0 {
				close(later.granted)
			}
		}
	}
}

func (h *Held) overlaps(other *Held) bool { return h.off < other.end && other.off < h.end }
