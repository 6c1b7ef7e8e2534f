// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/blkmirror/blkmirror/cmd/blkmirror-bench/result"
	"github.com/blkmirror/blkmirror/cmd/blkmirror/bytesize"
)

// herd are many small mirrors in one daemon.
type herd struct {
	folder string
	jobs   int
	size   int64 // of each image
}

func (h herd) source(i int) string { return filepath.Join(h.folder, fmt.Sprintf("source%d.raw", i)) }
func (h herd) target(i int) string { return filepath.Join(h.folder, fmt.Sprintf("target%d.raw", i)) }

// with makes the sources while use runs.
func (h herd) with(ctx context.Context, use func() error) (err error) {
	if err := os.Mkdir(h.folder, 0o755); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(h.folder)) }()
	for i := range h.jobs {
		if err := makeImage(h.source(i), h.size, func(f *os.File) error { return randomData(ctx, f, 0, h.size, uint64(i)) }); err != nil {
			return err
		}
	}
	return use()
}

// run mirrors all of it: first up to READY, then, when meanwhile is done, to completion.
func (h herd) run(ctx context.Context, b *bench, c *contender, s result.Sample, meanwhile func(d *daemon) error) error {
	for i := range h.jobs {
		if err := makeSparse(h.target(i), h.size); err != nil {
			return err
		}
	}
	d, err := b.startDaemon(ctx, c)
	if err != nil {
		return err
	}
	defer d.kill()
	id := func(kind string, i int) string { return fmt.Sprintf("%s%d", kind, i) }
	for i := range h.jobs {
		if err := d.add(ctx, d.node(id("s", i), "raw", h.source(i), false, nil)); err != nil {
			return err
		}
		if err := d.add(ctx, d.node(id("t", i), "raw", h.target(i), false, nil)); err != nil {
			return err
		}
	}
	m, err := b.meter(ctx, d.process)
	if err != nil {
		return err
	}
	for i := range h.jobs {
		if err := d.startMirror(ctx, id("j", i), id("s", i), id("t", i), nil); err != nil {
			return err
		}
	}
	if err := d.awaitJobs(ctx, "BLOCK_JOB_READY", h.jobs); err != nil {
		return err
	}
	took, used, err := m.stop(s)
	if err != nil {
		return err
	}
	putTimes(s, took, used, float64(h.jobs))
	if meanwhile != nil {
		if err := meanwhile(d); err != nil {
			return err
		}
	}
	start := time.Now()
	for i := range h.jobs {
		if err := d.execute(ctx, "job-complete", arguments{"id": id("j", i)}, nil); err != nil {
			return err
		}
	}
	if err := d.awaitJobs(ctx, "BLOCK_JOB_COMPLETED", h.jobs); err != nil {
		return err
	}
	s[finishing.Name] = time.Since(start).Seconds()
	if err := errors.Join(putPeak(s, d.process), d.quit(ctx)); err != nil {
		return err
	}
	for i := range h.jobs {
		if err := compareRaw(ctx, h.source(i), h.target(i)); err != nil {
			return err
		}
	}
	return nil
}

// herdMetrics are what many mirrors measure.
var herdMetrics = []result.Metric{wall, cpu, finishing, peak}

// manyJobs is S7.
func (b *bench) manyJobs(ctx context.Context) error {
	h := herd{folder: filepath.Join(b.ram, "jobs"), jobs: b.count(100, 2), size: 16 * mib}
	mirrors, asked, idling := fmt.Sprintf("%d mirrors", h.jobs), fmt.Sprintf("query-jobs, %d jobs", h.jobs), "query-jobs, no job"
	queryMetrics := []result.Metric{perSecond, p50, p99, cpuEach}
	if b.wants(mirrors, asked) {
		err := h.with(ctx, func() error {
			if err := b.measure(ctx, trial{scenario: "S7", name: mirrors, metrics: herdMetrics, verifies: true, memory: int64(h.jobs) * h.size,
				note: fmt.Sprintf("Images of %s in memory; from the first command to the last READY, then from the first job-complete to the last end.",
					bytesize.Format(h.size)),
				run: func(ctx context.Context, c *contender, s result.Sample) error { return h.run(ctx, b, c, s, nil) }}); err != nil {
				return err
			}
			return b.measure(ctx, trial{scenario: "S7", name: asked, metrics: queryMetrics, verifies: true,
				note: "One client asks again and again while all jobs are ready.",
				run: func(ctx context.Context, c *contender, s result.Sample) error {
					var asked result.Sample
					err := h.run(ctx, b, c, s, func(d *daemon) (err error) {
						asked, err = b.queries(ctx, d)
						return err
					})
					for name, v := range asked {
						s[name] = v
					}
					return err
				}})
		})
		if err != nil {
			return err
		}
	}
	return b.measure(ctx, trial{scenario: "S7", name: idling, metrics: queryMetrics, note: "One client asks again and again.",
		run: func(ctx context.Context, c *contender, s result.Sample) error {
			d, err := b.startDaemon(ctx, c)
			if err != nil {
				return err
			}
			defer d.kill()
			asked, err := b.queries(ctx, d)
			if err != nil {
				return err
			}
			for name, v := range asked {
				s[name] = v
			}
			return d.quit(ctx)
		}})
}

// queries asks for the jobs again and again, on the monitor's connection as it is on the wire: what is measured is the daemon,
// not what a client does with the answers. The daemon takes one client at a time, so the usual one leaves, and comes
// back afterwards.
func (b *bench) queries(ctx context.Context, d *daemon) (s result.Sample, err error) {
	if err := d.monitor.Close(); err != nil {
		return nil, err
	}
	conn, err := d.dial(ctx, d.qmp)
	if err != nil {
		return nil, err
	}
	s, err = b.query(ctx, d.process, conn)
	if err := errors.Join(err, conn.Close()); err != nil {
		return nil, err
	}
	d.monitor, err = d.connect(ctx)
	return s, err
}

func (b *bench) query(ctx context.Context, p *process, conn net.Conn) (result.Sample, error) {
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	in := bufio.NewReaderSize(conn, 256<<10)
	ask := func(command string) error {
		if _, err := fmt.Fprintf(conn, "{\"execute\": \"%s\"}\n", command); err != nil {
			return err
		}
		for {
			line, err := in.ReadSlice('\n')
			for errors.Is(err, bufio.ErrBufferFull) {
				line, err = in.ReadSlice('\n')
			}
			if err != nil {
				return err
			}
			if bytes.HasPrefix(line, []byte(`{"error"`)) {
				return fmt.Errorf("%s: %s", command, line)
			}
			if !bytes.HasPrefix(line, []byte(`{"timestamp"`)) && !bytes.HasPrefix(line, []byte(`{"QMP"`)) {
				return nil
			}
		}
	}
	if err := ask("qmp_capabilities"); err != nil {
		return nil, err
	}
	s := result.Sample{}
	m, err := b.meter(ctx, p)
	if err != nil {
		return nil, err
	}
	var latencies []float64
	for start := time.Now(); time.Since(start) < b.loadTime; {
		asked := time.Now()
		if err := ask("query-jobs"); err != nil {
			return nil, err
		}
		latencies = append(latencies, float64(time.Since(asked))/1e3)
	}
	took, used, err := m.stop(s)
	slices.Sort(latencies)
	putTimes(s, took, used, float64(len(latencies)))
	s[p50.Name], s[p99.Name] = result.Percentile(latencies, 50), result.Percentile(latencies, 99)
	return s, err
}

// startUp is S8.
func (b *bench) startUp(ctx context.Context) error {
	const settle = 200 * time.Millisecond
	return b.measure(ctx, trial{scenario: "S8", name: "start-up", metrics: []result.Metric{wall, cpu, idle}, rounds: 3 * b.rounds,
		note: "From exec to the greeting on the monitor's socket; memory 200 ms later.",
		run: func(ctx context.Context, c *contender, s result.Sample) error {
			d := &daemon{c: c, b: b, qmp: b.scratch("qmp")}
			var err error
			if d.process, err = startProcess(ctx, c.argv(nil, d.arguments()...), b.scratch("log")); err != nil {
				return err
			}
			defer d.kill()
			conn, err := d.dial(ctx, d.qmp)
			if err != nil {
				return err
			}
			defer conn.Close()
			stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
			defer stop()
			if _, err := bufio.NewReader(conn).ReadSlice('\n'); err != nil {
				return err
			}
			took := time.Since(d.started)
			used, err := cpuTime(d.pid())
			if err != nil {
				return err
			}
			s[wall.Name], s[cpu.Name] = took.Seconds(), used.Seconds()
			select {
			case <-time.After(settle):
			case <-ctx.Done():
				return context.Cause(ctx)
			}
			n, err := memory(d.pid(), "VmRSS")
			s[idle.Name] = inMiB(n)
			return err
		}})
}
