// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"slices"
	"sync"
	"text/tabwriter"
	"time"
)

// phase is a part of the demonstration, as the guest's requests are counted.
type phase int

const (
	alone phase = iota
	copying
	inStep
	switching
	onTarget
	numPhases
)

var phaseNames = [numPhases]string{"before the mirror", "while copying", "in step", "switch, and hashing", "on the target"}

// latencies are the durations of the guest's requests, by the phase in which
// they began.
type latencies struct {
	mu struct {
		sync.Mutex
		now     phase
		samples [numPhases][]time.Duration
	}
}

func (l *latencies) enter(p phase) {
	l.mu.Lock()
	l.mu.now = p
	l.mu.Unlock()
}

func (l *latencies) phase() phase {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.mu.now
}

func (l *latencies) add(p phase, d time.Duration) {
	l.mu.Lock()
	l.mu.samples[p] = append(l.mu.samples[p], d)
	l.mu.Unlock()
}

// print shows a table. It sorts the samples.
func (l *latencies) print(out io.Writer) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "\trequests\tp50\tp99\tmax\t")
	var all []time.Duration
	for p, samples := range l.mu.samples {
		all = append(all, samples...)
		row(w, phaseNames[p], samples)
	}
	row(w, "all", all)
	return w.Flush()
}

func row(w io.Writer, name string, samples []time.Duration) {
	slices.Sort(samples)
	fmt.Fprintf(w, "%s\t%d\t%s\t%s\t%s\t\n", name, len(samples),
		quantile(samples, 0.5), quantile(samples, 0.99), quantile(samples, 1))
}

// quantile is the smallest sample that this share of all do not exceed.
func quantile(sorted []time.Duration, share float64) string {
	if len(sorted) == 0 {
		return "-"
	}
	i := max(int(share*float64(len(sorted))+0.999999)-1, 0)
	return sorted[min(i, len(sorted)-1)].Round(time.Microsecond).String()
}
