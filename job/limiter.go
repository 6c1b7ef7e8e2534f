// SPDX-License-Identifier: Apache-2.0

package job

import "time"

// Limiter holds work to a speed from the first byte on. It saves up no credit: work may start when all that was taken
// before is paid for by time, so that over any second no more passes than the speed allows and one piece.
type Limiter struct {
	speed int64     // bytes per second, 0 for no limit
	free  time.Time // when what was taken is paid for
}

// SetSpeed changes the speed at time now. What was taken but not yet paid for is paid at the new speed.
func (l *Limiter) SetSpeed(speed int64, now time.Time) {
	if speed == l.speed {
		return
	}
	if debt := l.free.Sub(now); debt > 0 && speed > 0 && l.speed > 0 {
		l.free = now.Add(time.Duration(float64(debt) * float64(l.speed) / float64(speed)))
	} else {
		l.free = now
	}
	l.speed = speed
}

// Wait is how long work has to wait at time now; zero or less means that it may start.
func (l *Limiter) Wait(now time.Time) time.Duration {
	if l.speed == 0 {
		return 0
	}
	return l.free.Sub(now)
}

// Take accounts for n bytes of work that starts now; a negative n gives back what was taken too much.
func (l *Limiter) Take(n int64, now time.Time) {
	if l.speed == 0 {
		return
	}
	if l.free.Before(now) {
		l.free = now
	}
	l.free = l.free.Add(time.Duration(float64(n) / float64(l.speed) * float64(time.Second)))
}

// Piece is the largest piece of work that the speed allows to pass in one go, at least least and at most most: a tenth of
// a second's worth.
func (l *Limiter) Piece(least, most int64) int64 {
	if l.speed == 0 {
		return most
	}
	return min(max(l.speed/10, least), most)
}
