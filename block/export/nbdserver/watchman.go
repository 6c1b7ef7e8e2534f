// SPDX-License-Identifier: Apache-2.0

package nbdserver

import (
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/blkmirror/blkmirror/block"
)

const (
	patrolEvery = 4 * time.Millisecond
	quietRounds = 4 // rounds without anything to see before the watchman goes to sleep
	// busyFor is for how long clients count as busy after that: on a busy machine one may be kept from its next request.
	busyFor = 200 * time.Millisecond
)

// watchman takes the turn away from goroutines of sessions that have lent it for too long. While nothing happens on any
// session it sleeps; the next lend wakes it.
//
// Its clock is a timer of the kernel's that it reads like a connection. While a timer of the Go runtime runs, every wait
// for a network event has a timeout, and setting that up costs more than a request is worth.
type watchman struct {
	clock  *os.File
	asleep atomic.Bool
	wake   chan struct{}
	slept  atomic.Int64 // when it last went to sleep, in nanoseconds after began
	began  time.Time

	mu struct {
		sync.Mutex
		seen map[*session]uint64 // the loan of each session as it was one round ago
	}
}

func newWatchman() (*watchman, error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_CLOEXEC|unix.TFD_NONBLOCK)
	if err != nil {
		return nil, &block.Error{Kind: block.KindOf(err), Op: block.OpOpen, Err: fmt.Errorf("Failed to make a timer: %w", err)}
	}
	w := &watchman{clock: os.NewFile(uintptr(fd), "timer"), wake: make(chan struct{}, 1), began: time.Now()}
	w.slept.Store(int64(-busyFor))
	w.asleep.Store(true)
	w.mu.seen = map[*session]uint64{}
	return w, nil
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

// busy says whether something happened on any session lately.
func (w *watchman) busy() bool {
	return !w.asleep.Load() || time.Since(w.began)-time.Duration(w.slept.Load()) < busyFor
}

// notice tells that a session lent its turn.
func (w *watchman) notice() {
	if w.asleep.Load() && w.asleep.CompareAndSwap(true, false) {
		w.wake <- struct{}{} // never blocks: one wake follows one falling asleep
	}
}

// run watches until stop is closed and close is called.
func (w *watchman) run(stop <-chan struct{}) {
	for {
		select {
		case <-w.wake:
		case <-stop:
			return
		}
		w.setClock(patrolEvery)
		for quiet := 0; quiet < quietRounds; {
			if !w.tick() {
				return
			}
			if quiet++; w.patrol() {
				quiet = 0
			}
		}
		w.setClock(0)
		w.slept.Store(int64(time.Since(w.began)))
		// Whoever lends looks at asleep afterwards, so a loan that is not seen here is followed by a wake.
		w.asleep.Store(true)
		if w.patrol() {
			w.notice()
		}
	}
}

// close ends run, if stop is closed.
func (w *watchman) close() { _ = w.clock.Close() }

// setClock makes the clock tick, or stop for 0.
func (w *watchman) setClock(every time.Duration) {
	spec := unix.NsecToTimespec(int64(every))
	conn, err := w.clock.SyscallConn()
	if err != nil {
		return // closed
	}
	_ = conn.Control(func(fd uintptr) {
		_ = unix.TimerfdSettime(int(fd), 0, &unix.ItimerSpec{Interval: spec, Value: spec}, nil)
	})
}

// tick waits for the clock; false if it is closed.
func (w *watchman) tick() bool {
	var ticks [8]byte
	_, err := w.clock.Read(ticks[:])
	return err == nil
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
