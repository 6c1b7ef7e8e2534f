// SPDX-License-Identifier: Apache-2.0

package job

import (
	"testing"
	"time"
)

// work has a crew work for some time; each piece of 1 MiB takes what took says, which is told how many are in flight. It returns
// the sizes that the crew had on average over the last part of the time.
func work(c *Crew, last time.Duration, took func(size int) time.Duration) (mean float64) {
	start := time.Unix(0, 0)
	ends := []time.Time{}
	var weight time.Duration
	for now := start; now.Sub(start) < last; {
		for len(ends) < c.Size() {
			ends = append(ends, now.Add(took(c.Size())*time.Duration(len(ends)+1)/time.Duration(c.Size())))
		}
		first := 0
		for i := range ends {
			if ends[i].Before(ends[first]) {
				first = i
			}
		}
		if now.Sub(start) > last/2 {
			weight += ends[first].Sub(now) * time.Duration(c.Size())
		}
		now = ends[first]
		ends = append(ends[:first], ends[first+1:]...)
		c.Done(mib, now)
	}
	return float64(weight) / float64(last/2)
}

func TestCrew(t *testing.T) {
	for _, c := range []struct {
		name          string
		most          int
		took          func(size int) time.Duration
		least, atMost float64
	}{
		{"a far target", 16, func(int) time.Duration { return 20 * time.Millisecond }, 14, 16},
		{"a far target and a small buf-size", 3, func(int) time.Duration { return 20 * time.Millisecond }, 2.5, 3},
		{"a disk that one piece keeps busy", 16, func(n int) time.Duration { return time.Duration(n) * time.Millisecond }, 1, 1.2},
		{"a disk that four keep busy", 16, func(n int) time.Duration { return time.Duration(max(n, 4)) * time.Millisecond }, 3.5, 4.5},
		{"a disk that many slow down", 16, func(n int) time.Duration { return time.Duration(n*n) * time.Millisecond }, 1, 1.2},
		{"one piece at a time", 1, func(int) time.Duration { return time.Millisecond }, 1, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			crew := NewCrew(2, c.most)
			if mean := work(&crew, 100*time.Second, c.took); mean < c.least-0.01 || mean > c.atMost+0.01 {
				t.Errorf("%.2f pieces were in flight on average, want %v to %v", mean, c.least, c.atMost)
			}
		})
	}
}

// A far target is found to be one soon, and one that comes nearer, too.
func TestCrewFollows(t *testing.T) {
	crew := NewCrew(2, 16)
	far := func(int) time.Duration { return 20 * time.Millisecond }
	work(&crew, time.Second, far)
	if crew.Size() != 16 {
		t.Errorf("after a second %d pieces are in flight to a far target", crew.Size())
	}
	near := func(n int) time.Duration { return time.Duration(n) * time.Millisecond }
	work(&crew, time.Minute, near)
	if crew.Size() > 2 {
		t.Errorf("a minute later there are %d to a near one", crew.Size())
	}
}

// What is held up by something else is no reason to change anything.
func TestCrewIdle(t *testing.T) {
	crew := NewCrew(2, 16)
	now := time.Unix(0, 0)
	for range 1000 {
		now = now.Add(20 * time.Millisecond)
		crew.Done(mib, now)
		crew.Idle()
	}
	if crew.Size() != 2 {
		t.Errorf("%d pieces are in flight", crew.Size())
	}
}
