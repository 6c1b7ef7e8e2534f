// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/blkmirror/blkmirror/cmd/blkmirror-bench/result"
)

// What is measured.
var (
	wall      = result.Metric{Name: "wall_s", Title: "wall s", Better: result.Lower}
	cpu       = result.Metric{Name: "cpu_s", Title: "CPU s", Better: result.Lower}
	cpuEach   = result.Metric{Name: "cpu_us_per_op", Title: "CPU µs/op", Better: result.Lower}
	rate      = result.Metric{Name: "mib_per_s", Title: "MiB/s", Better: result.Higher}
	perSecond = result.Metric{Name: "ops_per_s", Title: "ops/s", Better: result.Higher}
	p50       = result.Metric{Name: "p50_us", Title: "p50 µs", Better: result.Lower}
	p99       = result.Metric{Name: "p99_us", Title: "p99 µs", Better: result.Lower}
	target    = result.Metric{Name: "target_mib", Title: "target MiB", Better: result.Neither}
	source    = result.Metric{Name: "source_mib", Title: "source MiB", Better: result.Neither}
	left      = result.Metric{Name: "left_mib", Title: "left MiB", Better: result.Neither}
	peak      = result.Metric{Name: "peak_rss_mib", Title: "peak RSS MiB", Better: result.Lower}
	idle      = result.Metric{Name: "idle_rss_mib", Title: "idle RSS MiB", Better: result.Lower}
	finishing = result.Metric{Name: "completing_s", Title: "completing s", Better: result.Lower}
)

// operations is how many a run did, by which calls are divided; it is no metric that is shown.
const operations = "ops"

// trial is a case and how to measure it.
type trial struct {
	scenario, name, note string
	metrics              []result.Metric
	verifies             bool   // run compares the target with the source
	servers              bool   // NBD servers take part as well
	rounds               int    // 0 for as many as the settings say
	memory               int64  // bytes that a run needs for images, about
	folder               string // where these are; "" for the folder in memory
	x                    float64
	like                 string // contenders that take part in this scenario take part; "" for scenario
	// changes is a file whose changes are counted in a traced run, in place of all system calls.
	changes string
	// run makes one run, and puts what it measures into s.
	run func(ctx context.Context, c *contender, s result.Sample) error
}

// measure runs a trial with all contenders, prints its table and adds it to the report. The error is that of the program
// or of ctx; what goes wrong with a contender is in the report.
func (b *bench) measure(ctx context.Context, t trial) error {
	if !b.cases.MatchString(t.name) {
		return nil
	}
	contenders := slices.Clone(b.daemons)
	if t.servers {
		contenders = append(contenders, b.servers...)
	}
	contenders = slices.DeleteFunc(contenders, func(c *contender) bool { return !c.takesPart(cmp.Or(t.like, t.scenario)) })
	c := &result.Case{Scenario: t.scenario, Name: t.name, Note: t.note, Metrics: t.metrics, Verifies: t.verifies, X: t.x}
	for _, contender := range contenders {
		c.Rows = append(c.Rows, &result.Row{Contender: contender.name, Status: result.NotRun})
	}
	b.report.Cases = append(b.report.Cases, c)
	rounds := t.rounds
	if rounds == 0 {
		rounds = b.rounds
	}
	for round := range rounds {
		for i := range contenders {
			at := (i + round) % len(contenders)
			b.once(ctx, &t, contenders[at], c.Rows[at])
		}
	}
	if b.syscalls && installed("strace") {
		b.tracing = true
		for i, contender := range contenders {
			b.traced(ctx, &t, contender, c.Rows[i])
		}
		b.tracing = false
	}
	if err := result.WriteCase(b.out, c, b.report.Ours); err != nil {
		return err
	}
	return context.Cause(ctx)
}

// once makes one run. A contender that does not have what is asked for, that made a wrong copy, or that failed twice does
// not get another one.
func (b *bench) once(ctx context.Context, t *trial, c *contender, row *result.Row) {
	if ctx.Err() != nil || row.Status == result.NotSupported || row.Status == result.Failed {
		return
	}
	if t.memory > 0 {
		if err := warm(cmp.Or(t.folder, b.ram), t.memory); err != nil {
			fmt.Fprintf(b.progress, "%s %s: memory could not be warmed: %v\n", t.scenario, t.name, err)
		}
	}
	bounded, cancel := context.WithTimeoutCause(ctx, b.runTimeout, errTimeout)
	defer cancel()
	start := time.Now()
	sample := result.Sample{}
	err := t.run(bounded, c, sample)
	took := time.Since(start).Round(time.Millisecond)
	if err == nil {
		row.Samples = append(row.Samples, sample)
		row.Status = result.OK
		if t.verifies {
			row.Verified++
		}
		fmt.Fprintf(b.progress, "%s %s %s: %s(%v)\n", t.scenario, t.name, c.name, describe(t.metrics, sample), took)
		return
	}
	fmt.Fprintf(b.progress, "%s %s %s: %v (%v)\n", t.scenario, t.name, c.name, err, took)
	if ctx.Err() != nil {
		return // it is not the contender's fault
	}
	row.Note = err.Error()
	if _, refused := errors.AsType[refusal](err); refused && len(row.Samples) == 0 {
		row.Status = result.NotSupported
		return
	}
	row.Failures++
	wrong := errors.Is(err, errDiffers)
	if wrong || row.Failures > 1 || b.rounds == 1 {
		row.Status = result.Failed
	}
	// Peers may fail; that is a result, too.
	if wrong || row.Status == result.Failed && row.Contender == b.report.Ours {
		b.failed = append(b.failed, fmt.Sprintf("%s %s %s: %v", t.scenario, t.name, c.name, err))
	}
}

// traced makes one run that counts system calls.
func (b *bench) traced(ctx context.Context, t *trial, c *contender, row *result.Row) {
	if ctx.Err() != nil || row.Status != result.OK {
		return
	}
	bounded, cancel := context.WithTimeoutCause(ctx, b.runTimeout, errTimeout)
	defer cancel()
	for _, changes := range slices.Compact([]string{"", t.changes}) {
		b.traceTarget = ""
		if changes != "" {
			b.traceTarget = c.inside(changes)
		}
		sample := result.Sample{}
		if err := t.run(bounded, c, sample); err != nil {
			fmt.Fprintf(b.progress, "%s %s %s under strace: %v\n", t.scenario, t.name, c.name, err)
			return
		}
		for _, name := range []string{result.TracedCalls, result.TracedOnTarget} {
			n, ok := sample[name]
			if !ok {
				continue
			}
			if name == result.TracedCalls && sample[operations] > 0 {
				n /= sample[operations]
			}
			if row.Traced == nil {
				row.Traced = result.Sample{}
			}
			row.Traced[name] = n
		}
	}
}

func describe(metrics []result.Metric, s result.Sample) string {
	var b strings.Builder
	for _, m := range metrics {
		if v, ok := s[m.Name]; ok {
			fmt.Fprintf(&b, "%s %s, ", m.Title, result.Format(v))
		}
	}
	return b.String()
}

// Helpers that put values into samples.

func putTimes(s result.Sample, wallTime, cpuTime time.Duration, ops float64) {
	s[wall.Name], s[cpu.Name] = wallTime.Seconds(), cpuTime.Seconds()
	if ops > 0 {
		s[operations] = ops
		s[cpuEach.Name] = cpuTime.Seconds() * 1e6 / ops
		s[perSecond.Name] = ops / wallTime.Seconds()
	}
}

func inMiB(bytes int64) float64 { return float64(bytes) / float64(mib) }

func putAllocated(s result.Sample, m result.Metric, path string) error {
	n, err := allocated(path)
	s[m.Name] = inMiB(n)
	return err
}

func putPeak(s result.Sample, p *process) error {
	n, err := memory(p.pid(), "VmHWM")
	s[peak.Name] = inMiB(n)
	return err
}
