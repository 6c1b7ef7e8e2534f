// SPDX-License-Identifier: Apache-2.0

package nbdserver

import "context"

// The turn is the right to read requests. This file passes it between the goroutines of a session.

// work is the life of one goroutine of the session.
func (s *session) work(ctx context.Context) {
	defer s.workers.Done()
	for s.await() {
		for s.step(ctx) {
		}
		if !s.rejoin() {
			return
		}
	}
}

// await waits for the turn; false if there will be none.
func (s *session) await() bool {
	select {
	case <-s.turn:
		return true
	case <-s.over:
		return false
	}
}

// rejoin puts the goroutine, which lost the turn, among those that wait for it; false if it is not needed.
func (s *session) rejoin() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.ended || s.mu.idle >= maxIdle {
		return false
	}
	s.mu.idle++
	return true
}

// spareLocked makes sure that there is a goroutine to pass the turn to. There are at most as many goroutines as
// requests under way, and a few.
func (s *session) spareLocked(ctx context.Context) {
	if s.mu.idle == 0 {
		s.mu.idle++
		s.workers.Add(1)
		go s.work(ctx)
	}
}

// pass gives the turn to a goroutine that waits for it, of which there is one.
func (s *session) pass() {
	s.mu.Lock()
	s.mu.idle--
	s.mu.Unlock()
	s.turn <- struct{}{} // never blocks: there is one turn
}

func lent(loan uint64) bool { return loan&1 == 1 }

// lend keeps the turn but lets the watchman take it. There is a goroutine to pass it to.
func (s *session) lend() (loan uint64) {
	loan = s.loan.Load() + 1
	s.loan.Store(loan)
	s.watch.notice()
	return loan
}

// reclaim ends a loan; false if the turn is gone.
func (s *session) reclaim(loan uint64) bool { return s.loan.CompareAndSwap(loan, loan+1) }
