// SPDX-License-Identifier: Apache-2.0

package logging

import (
	"sync"
	"time"

	"github.com/sirupsen/logrus"
)

// How often one message may come: burst times, then once in every pause. Messages are constant texts; what differs is in their fields.
const (
	burst = 20
	pause = 5 * time.Second
	// maxKnown bounds the memory for messages; above it all are forgotten, which lets a few more through.
	maxKnown = 512
)

// limiter leaves out lines that come too often. The next one of the kind that is written says how many, in the field "suppressed".
type limiter struct {
	lines logrus.Formatter
	now   func() time.Time

	mu struct {
		sync.Mutex
		known map[message]*flow
	}
}

type message struct {
	level logrus.Level
	text  string
}

// flow is how often a message came of late.
type flow struct {
	left       float64 // how many may come now
	at         time.Time
	suppressed int
}

func newLimiter(lines logrus.Formatter, now func() time.Time) *limiter {
	l := &limiter{lines: lines, now: now}
	l.mu.known = map[message]*flow{}
	return l
}

// Format returns nothing for a line that is left out.
func (l *limiter) Format(e *logrus.Entry) ([]byte, error) {
	suppressed, ok := l.take(message{e.Level, e.Message})
	if !ok {
		return nil, nil
	}
	if suppressed > 0 {
		told := *e
		told.Data = make(logrus.Fields, len(e.Data)+1)
		for name, value := range e.Data {
			told.Data[name] = value
		}
		told.Data["suppressed"] = suppressed
		e = &told
	}
	return l.lines.Format(e)
}

func (l *limiter) take(m message) (suppressed int, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	f := l.mu.known[m]
	if f == nil {
		if len(l.mu.known) >= maxKnown {
			clear(l.mu.known)
		}
		f = &flow{left: burst, at: now}
		l.mu.known[m] = f
	}
	f.left = min(burst, f.left+now.Sub(f.at).Seconds()/pause.Seconds())
	f.at = now
	if f.left < 1 {
		f.suppressed++
		return 0, false
	}
	f.left--
	suppressed, f.suppressed = f.suppressed, 0
	return suppressed, true
}
