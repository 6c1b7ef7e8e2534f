// SPDX-License-Identifier: Apache-2.0

package mirror

import (
	"fmt"
	"time"
)

// In copy mode auto the job begins in background mode, where guests are fastest, and goes over to write-blocking when the copy
// would not catch up with them. It goes back when that is cheap: when guests write so little that the copy would keep up. To
// keep from going to and fro, each direction takes several samples in a row, the bounds lie apart, and every time it has to
// leave background mode it stays away for longer.

const (
	sampleEvery = 500 * time.Millisecond
	// In background mode, the copy is behind if guests make dirty more than this part of what it copies …
	behindPart = 0.9
	// … while at least this much is left to do, in this many samples in a row.
	behindLeast   = 8 << 20
	behindSamples = 4
	// In write-blocking mode, guests are calm if they write less than this part of what the copy could keep up with.
	calmPart = 0.5
	// For how long they have to be, at first and at most.
	calmFirst, calmMost = 10 * time.Second, 5 * time.Minute
)

// flow counts bytes since the job began.
type flow struct {
	dirtied  int64 // made dirty by guests in background mode
	mirrored int64 // written to the target by guests in write-blocking mode
	copied   int64 // done by the copy
}

// rates are bytes per second over the last sample.
type rates struct{ dirtied, mirrored, copied float64 }

// meter turns the counts of a flow into rates.
type meter struct {
	at   time.Time
	last flow
}

// sample returns the rates since the sample before, if that is long enough ago.
func (m *meter) sample(now time.Time, f flow) (r rates, ok bool) {
	if m.at.IsZero() {
		m.at, m.last = now, f
		return r, false
	}
	passed := now.Sub(m.at)
	if passed < sampleEvery {
		return r, false
	}
	per := func(now, before int64) float64 { return float64(now-before) / passed.Seconds() }
	r = rates{per(f.dirtied, m.last.dirtied), per(f.mirrored, m.last.mirrored), per(f.copied, m.last.copied)}
	m.at, m.last = now, f
	return r, true
}

// steering decides about the copy mode. It has no clock of its own.
type steering struct {
	behind   int       // samples in a row in which the copy was behind
	capacity float64   // bytes per second that the copy was seen to manage
	calm     time.Time // since when guests have been calm; zero if they are not
	patience time.Duration
}

// decide takes a sample in a mode, with what is left to do in bytes, and returns the mode to go on with and why it changed.
func (s *steering) decide(now time.Time, mode Mode, left int64, r rates) (next Mode, reason string) {
	if mode == Background {
		return s.background(left, r)
	}
	if r.mirrored >= calmPart*s.capacity {
		s.calm = time.Time{}
		return mode, ""
	}
	if s.calm.IsZero() {
		s.calm = now
	}
	if now.Sub(s.calm) < max(s.patience, calmFirst) {
		return mode, ""
	}
	s.calm, s.behind = time.Time{}, 0
	return Background, fmt.Sprintf("guests have written %.1f MB/s at most, and the copy keeps up with %.1f MB/s",
		calmPart*s.capacity/1e6, s.capacity/1e6)
}

func (s *steering) background(left int64, r rates) (next Mode, reason string) {
	if r.copied > 0 {
		// A sample with pauses in it shows less than the copy can do; one with work left shows all.
		s.capacity = max(r.copied, s.capacity*0.9)
	}
	if left < behindLeast || r.copied == 0 || r.dirtied < behindPart*r.copied {
		s.behind = 0
		return Background, ""
	}
	if s.behind++; s.behind < behindSamples {
		return Background, ""
	}
	s.behind, s.calm = 0, time.Time{}
	s.capacity = r.copied
	s.patience = min(max(s.patience*2, calmFirst), calmMost)
	return WriteBlocking, fmt.Sprintf("guests make %.1f MB/s dirty, and the copy does %.1f MB/s: it would not catch up",
		r.dirtied/1e6, r.copied/1e6)
}

// ModeChange tells that a mirror in mode auto changed its copy mode.
type ModeChange struct {
	JobID  string
	Mode   Mode
	Reason string
}

// measure takes a sample if it is time, and steers the copy mode if that is the job's to choose. It returns when the next
// sample is due, zero if none is needed before something happens.
func (l *loop) measure(now time.Time) time.Duration {
	m := l.m
	m.mu.Lock()
	auto, mode, left := m.auto, m.planner.mode, m.planner.d.SetBytes()
	r, ok := l.meter.sample(now, m.flow)
	if ok {
		m.rates, m.sampled = r, now
	}
	m.mu.Unlock()
	if !auto || !ok {
		return m.nextSample(auto, mode, left)
	}
	next, reason := l.steering.decide(now, mode, left, r)
	if next != mode {
		m.setMode(next)
		m.announce(next, reason)
	}
	return m.nextSample(auto, next, left)
}

// nextSample: while there is work, or a mode that might be left, samples are taken all the time.
func (m *Mirror) nextSample(auto bool, mode Mode, left int64) time.Duration {
	if left > 0 || auto && mode == WriteBlocking {
		return sampleEvery
	}
	return 0
}

func (m *Mirror) announce(mode Mode, reason string) {
	if m.opts.OnModeChange != nil {
		m.opts.OnModeChange(ModeChange{m.opts.JobID, mode, reason})
	}
}
