// SPDX-License-Identifier: Apache-2.0

package nbdserver

import (
	"sync"
	"sync/atomic"
	"time"
)

const (
	patrolEvery = time.Millisecond
	quietRounds = 8 // rounds without anything to see before the watchman goes to sleep
)

// watchman takes the turn away from goroutines of sessions that have lent it for too long. While nothing happens on any
// session it sleeps; the next lend wakes it.
type watchman struct {
	asleep atomic.Bool
	wake   chan struct{}

	mu struct {
		sync.Mutex
		seen map[*session]uint64 // the loan of each session as it was one round ago
	}
}

func newWatchman() *watchman {
	w := &watchman{wake: make(chan struct{}, 1)}
	w.asleep.Store(true)
	w.mu.seen = map[*session]uint64{}
	return w
}

func (w *watchman) add(s *session) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.mu.seen[s] = s.loan.Load()
}

func (w *watchman) remove(s *session) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.mu.seen, s)
}

// notice tells that a session lent its turn.
func (w *watchman) notice() {
	if w.asleep.Load() && w.asleep.CompareAndSwap(true, false) {
		w.wake <- struct{}{} // never blocks: one wake follows one falling asleep
	}
}

// run watches until stop is closed.
func (w *watchman) run(stop <-chan struct{}) {
	ticker := time.NewTicker(patrolEvery)
	ticker.Stop()
	defer ticker.Stop()
	for {
		select {
		case <-w.wake:
		case <-stop:
			return
		}
		ticker.Reset(patrolEvery)
		for quiet := 0; quiet < quietRounds; quiet++ {
			select {
			case <-ticker.C:
			case <-stop:
				return
			}
			if w.patrol() {
				quiet = 0
			}
			// Whoever lends looks at asleep afterwards, so a loan that is missed here is followed by a wake.
			if quiet == quietRounds-1 {
				w.asleep.Store(true)
				if w.patrol() && w.asleep.CompareAndSwap(true, false) {
					quiet = 0
				}
			}
		}
		ticker.Stop()
	}
}

// patrol looks at all sessions once, and says whether something had changed.
func (w *watchman) patrol() (busy bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for s, before := range w.mu.seen {
		now := s.loan.Load()
		switch {
		case now != before:
			w.mu.seen[s] = now
			busy = true
		case lent(now) && s.loan.CompareAndSwap(now, now+1):
			w.mu.seen[s] = now + 1
			busy = true
			s.pass()
		}
	}
	return busy
}
