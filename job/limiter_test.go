// SPDX-License-Identifier: Apache-2.0

package job

import (
	"math/rand/v2"
	"testing"
	"time"
)

// pass lets pieces through from start on for a while and returns when each did.
type passed struct {
	at time.Duration
	n  int64
}

func pass(l *Limiter, from time.Time, at, until time.Duration, piece func() int64) (all []passed, now time.Duration) {
	for now = at; now < until; {
		if wait := l.Wait(from.Add(now)); wait > 0 {
			now += wait
			continue
		}
		n := piece()
		l.Take(n, from.Add(now))
		all = append(all, passed{now, n})
	}
	return all, now
}

// Over any second no more passes than the speed allows and one piece, and over all the speed is reached.
func TestLimiter(t *testing.T) {
	from := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for seed := range uint64(50) {
		r := rand.New(rand.NewPCG(seed, 1))
		speed := int64(1) << (10 + r.IntN(20))
		var l Limiter
		l.SetSpeed(speed, from)
		biggest := int64(0)
		all, _ := pass(&l, from, 0, 10*time.Second, func() int64 {
			n := 1 + r.Int64N(l.Piece(512, 1<<20))
			biggest = max(biggest, n)
			return n
		})
		var total int64
		for i, p := range all {
			total += p.n
			var second int64
			for _, q := range all[i:] {
				if q.at < p.at+time.Second {
					second += q.n
				}
			}
			if second > speed+biggest+speed/1000 {
				t.Fatalf("seed %d: %d bytes in a second at %d bytes/s, pieces up to %d", seed, second, speed, biggest)
			}
		}
		if total < speed*10*99/100 {
			t.Errorf("seed %d: %d bytes in 10 s at %d bytes/s", seed, total, speed)
		}
	}
}

func TestLimiterSavesNothing(t *testing.T) {
	from := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	var l Limiter
	l.SetSpeed(1000, from)
	l.Take(1000, from)
	l.Take(-400, from.Add(time.Hour)) // given back long after
	l.Take(1000, from.Add(time.Hour))
	if wait := l.Wait(from.Add(time.Hour)); wait < 999*time.Millisecond {
		t.Errorf("credit was saved: %v", wait)
	}
}

func TestLimiterChanges(t *testing.T) {
	from := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	var l Limiter
	if l.Wait(from) > 0 || l.Piece(1, 99) != 99 {
		t.Error("no limit limits")
	}
	l.SetSpeed(100, from)
	l.Take(1000, from) // ten seconds
	l.SetSpeed(1000, from.Add(5*time.Second))
	if wait := l.Wait(from.Add(5 * time.Second)); wait != 500*time.Millisecond {
		t.Errorf("after raising: %v", wait)
	}
	l.SetSpeed(10, from.Add(5*time.Second))
	if wait := l.Wait(from.Add(5 * time.Second)); wait != 50*time.Second {
		t.Errorf("after lowering: %v", wait)
	}
	l.SetSpeed(0, from.Add(6*time.Second))
	if wait := l.Wait(from.Add(6 * time.Second)); wait > 0 {
		t.Errorf("without limit: %v", wait)
	}
	l.SetSpeed(50, from.Add(7*time.Second))
	if wait := l.Wait(from.Add(7 * time.Second)); wait > 0 {
		t.Errorf("a limit began with a debt of %v", wait)
	}
	if p := l.Piece(512, 1<<20); p != 512 {
		t.Errorf("a piece is %d", p)
	}
	l.SetSpeed(1<<20, from)
	if p := l.Piece(512, 1<<20); p != 104857 {
		t.Errorf("a piece is %d", p)
	}
}
