// SPDX-License-Identifier: Apache-2.0

package server

import (
	"io"
	"time"

	"golang.org/x/sys/unix"
)

// Clients send as many commands as they like. While guests' requests are under way, though, sessions together get no more
// than a share of one processor for theirs: what a session does is timed, and one that has used its part up pauses.
const (
	busyShare = 10 // sessions together take one part in so many of a processor's time
	// spared is how much work a session can save up, so that ordinary use never pauses.
	spared = 20 * time.Millisecond
	// slice is how much work a session may do after a pause: pauses are few and long, since each one ends with a switch.
	slice = 2 * time.Millisecond
	// longestCommand is the most that a command counts for. One that takes longer waits rather than works, and so does one
	// whose client does not read the reply.
	longestCommand = 10 * time.Millisecond
	longestPause   = 100 * time.Millisecond
)

// pace is how much work a session may do before it pauses.
type pace struct {
	left time.Duration
	at   time.Time // when left was worked out
}

// spend takes work off, and returns how long to pause if guests' requests are under way. sessions is how many there are.
func (p *pace) spend(now time.Time, work time.Duration, sessions int) (pause time.Duration) {
	per := time.Duration(busyShare * max(sessions, 1))
	if p.at.IsZero() {
		p.left = spared
	} else {
		p.left = min(spared, p.left+now.Sub(p.at)/per)
	}
	p.at = now
	p.left = max(p.left-min(max(work, 0), longestCommand), -longestCommand)
	if p.left >= 0 {
		return 0
	}
	return min((slice-p.left)*per, longestPause)
}

// waits is a connection that notes how long reading took, which is time spent waiting.
type waits struct {
	io.ReadWriteCloser
	took time.Duration
}

func (w *waits) Read(p []byte) (int, error) {
	began := time.Now()
	n, err := w.ReadWriteCloser.Read(p)
	w.took += time.Since(began)
	return n, err
}

// rest is a pause in a thread of its own: while a timer of the Go runtime runs, every wait for the network, which is what guests'
// requests consist of, costs about a fifth more.
func rest(pause time.Duration) {
	t := unix.NsecToTimespec(int64(pause))
	_ = unix.Nanosleep(&t, nil) // a signal ends it early, which does no harm
}
