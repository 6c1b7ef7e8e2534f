// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/blkmirror/blkmirror/qmp"
)

func TestPace(t *testing.T) {
	var p pace
	now := time.Unix(0, 0)
	work := func(d time.Duration, sessions int) time.Duration { return p.spend(now, d, sessions) }

	for range 100 { // a command each 10 ms that takes 1 ms is what a session may have
		if pause := work(time.Millisecond, 1); pause > 0 {
			t.Fatalf("a pause of %v", pause)
		}
		now = now.Add(10 * time.Millisecond)
	}
	if pause := work(time.Hour, 1); pause > 0 {
		t.Errorf("a pause of %v after one command that waited", pause)
	}
	now = now.Add(time.Second)

	// A flood: the share is kept, and pauses are long rather than many.
	var worked, paused time.Duration
	pauses := 0
	for worked < time.Second {
		const command = 50 * time.Microsecond
		now = now.Add(command)
		worked += command
		if pause := work(command, 1); pause > 0 {
			pauses++
			paused += pause
			now = now.Add(pause)
		}
	}
	if share := float64(worked) / float64(worked+paused); share < 0.08 || share > 0.13 {
		t.Errorf("a flood gets %.2f of a processor", share)
	}
	if pauses > 550 {
		t.Errorf("%d pauses", pauses)
	}
	// Two sessions have half of that each.
	if one, two := (&pace{left: 0, at: now}).spend(now, time.Millisecond, 1), (&pace{left: 0, at: now}).spend(now, time.Millisecond, 2); two != 2*one {
		t.Errorf("pauses of %v and %v", one, two)
	}
	if pause := work(time.Hour, 100); pause != longestPause {
		t.Errorf("a pause of %v", pause)
	}
}

// A session that floods pauses while guests are busy.
func TestFloodPauses(t *testing.T) {
	const commands = 60
	work := func(context.Context, string, *qmp.Object) (any, error) {
		for began := time.Now(); time.Since(began) < time.Millisecond; {
		}
		return nil, nil
	}
	_, path := start(t, Config{Commands: work, Busy: func() bool { return true }}, ListenerOptions{})
	p := negotiated(t, path)
	began := time.Now()
	p.send(strings.Repeat(`{"execute": "query-version"}`, commands))
	for range commands {
		p.line()
	}
	const least = (commands*time.Millisecond - spared) * busyShare / 2 // twice the share at most
	if took := time.Since(began); took < least {
		t.Errorf("%d commands took %v, less than %v", commands, took, least)
	}
}
