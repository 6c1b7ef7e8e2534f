// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"time"
)

// sample is what a process holds at a moment.
type sample struct {
	at          time.Duration
	resident    int64 // bytes that belong to nobody else: what is anonymous
	descriptors int64
	threads     int64
}

// measure looks at a process.
func measure(pid int, at time.Duration) (sample, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return sample{}, err
	}
	s := sample{at: at}
	for line := range bytes.Lines(text) {
		name, value, _ := bytes.Cut(line, []byte(":"))
		fields := bytes.Fields(value)
		if len(fields) == 0 {
			continue
		}
		n, _ := strconv.ParseInt(string(fields[0]), 10, 64)
		switch string(name) {
		case "RssAnon":
			s.resident = n << 10
		case "Threads":
			s.threads = n
		}
	}
	open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	s.descriptors = int64(len(open))
	return s, err
}

// growth compares the last third of the samples with the second one, by what most of them hold at least: the first third is
// for warming up. More by slack, or by one part of so many, is flat: of noise there is some.
func growth(samples []sample, of func(sample) int64, slack, part int64) (before, after int64, flat bool) {
	third := len(samples) / 3
	middle := func(part []sample) int64 {
		values := make([]int64, len(part))
		for i, s := range part {
			values[i] = of(s)
		}
		slices.Sort(values)
		if len(values) == 0 {
			return 0
		}
		return values[len(values)/2]
	}
	before, after = middle(samples[third:2*third]), middle(samples[2*third:])
	return before, after, after-before <= max(slack, before/part)
}

var goroutineLine = regexp.MustCompile(`(?m)^goroutine \d+ `)

// goroutines ends a Go program and counts those that it prints for that.
func goroutines(p *process) (int, error) {
	before, err := os.Stat(p.log)
	if err != nil {
		return 0, err
	}
	p.dump()
	text, err := os.ReadFile(p.log)
	if err != nil {
		return 0, err
	}
	return len(goroutineLine.FindAll(text[before.Size():], -1)), nil
}
