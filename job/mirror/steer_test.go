// SPDX-License-Identifier: Apache-2.0

package mirror

import (
	"strings"
	"testing"
	"time"
)

// drive feeds a steering one sample every sampleEvery. demand says how many bytes per second guests want to write at a time;
// the copy manages capacity. It returns when the mode changed, and to what.
func drive(d time.Duration, capacity float64, demand func(at time.Duration) float64) (changes []time.Duration, modes []Mode, reasons []string) {
	var s steering
	start := time.Unix(0, 0)
	mode, left := Background, float64(0)
	for at := sampleEvery; at <= d; at += sampleEvery {
		want := demand(at)
		var r rates
		if mode == Background {
			r.dirtied = want
			r.copied = min(capacity, want+left/sampleEvery.Seconds())
			left = max(left+(want-r.copied)*sampleEvery.Seconds(), 0)
		} else {
			r.mirrored = min(want, capacity)
			r.copied = min(capacity-r.mirrored, left/sampleEvery.Seconds())
			left -= r.copied * sampleEvery.Seconds()
		}
		next, reason := s.decide(start.Add(at), mode, int64(left), r)
		if next != mode {
			changes, modes, reasons = append(changes, at), append(modes, next), append(reasons, reason)
			mode = next
		}
	}
	return changes, modes, reasons
}

const mega = 1e6

func TestAutoStaysInBackgroundWhileTheCopyKeepsUp(t *testing.T) {
	changes, _, _ := drive(10*time.Minute, 100*mega, func(time.Duration) float64 { return 60 * mega })
	if len(changes) > 0 {
		t.Errorf("changed at %v", changes)
	}
}

func TestAutoGoesOverWhenTheCopyFallsBehind(t *testing.T) {
	changes, modes, reasons := drive(5*time.Minute, 100*mega, func(time.Duration) float64 { return 150 * mega })
	if len(changes) != 1 || modes[0] != WriteBlocking || changes[0] > 5*time.Second {
		t.Fatalf("changed at %v to %v, want once to write-blocking within seconds", changes, modes)
	}
	if !strings.Contains(reasons[0], "150.0 MB/s") {
		t.Errorf("reason: %s", reasons[0])
	}
}

func TestAutoGoesBackWhenGuestsAreCalm(t *testing.T) {
	changes, modes, _ := drive(2*time.Minute, 100*mega, func(at time.Duration) float64 {
		if at < time.Minute {
			return 150 * mega
		}
		return 10 * mega
	})
	if len(changes) != 2 || modes[1] != Background {
		t.Fatalf("changed at %v to %v", changes, modes)
	}
	if waited := changes[1] - time.Minute; waited < calmFirst || waited > calmFirst+5*time.Second {
		t.Errorf("went back after %v of calm", waited)
	}
}

// TestAutoDoesNotFlap lets guests change their minds as often as would be worst: they are calm for just so long that the job
// goes back, then write too much again.
func TestAutoDoesNotFlap(t *testing.T) {
	const span = time.Hour
	for _, period := range []time.Duration{2 * time.Second, 15 * time.Second, 30 * time.Second, 2 * time.Minute} {
		changes, _, _ := drive(span, 100*mega, func(at time.Duration) float64 {
			if at/period%2 == 0 {
				return 150 * mega
			}
			return 5 * mega
		})
		if most := 24; len(changes) > most {
			t.Errorf("period %v: %d changes in %v, %d is the most", period, len(changes), span, most)
		}
	}
}

func TestMeterNeedsTime(t *testing.T) {
	var m meter
	start := time.Unix(0, 0)
	if _, ok := m.sample(start, flow{copied: 5}); ok {
		t.Error("a first sample has no rate")
	}
	if _, ok := m.sample(start.Add(sampleEvery/2), flow{copied: 50}); ok {
		t.Error("a sample too soon has no rate")
	}
	r, ok := m.sample(start.Add(2*sampleEvery), flow{dirtied: 10, mirrored: 20, copied: 1005})
	if want := (rates{dirtied: 10, mirrored: 20, copied: 1000}); !ok || r != want {
		t.Errorf("rates %v, %v; want %v", r, ok, want)
	}
}
