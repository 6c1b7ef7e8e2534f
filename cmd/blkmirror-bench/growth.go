// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/blkmirror/blkmirror/cmd/blkmirror-bench/plot"
	"github.com/blkmirror/blkmirror/cmd/blkmirror-bench/result"
)

// growing is something that grows: each of its values is a case.
type growing struct {
	id, like    string // like is the scenario that it resembles
	title, axis string
	values      []int
	plots       []result.Metric // one plot for each
	measure     func(b *bench, ctx context.Context, t trial, n int) error
}

var growths = []growing{
	{"thin", "S2", "Mirror of a thin disk", "size of the disk, GiB", []int{1, 10, 100, 1000}, []result.Metric{wall, cpu, peak}, (*bench).growThin},
	{"jobs", "S7", "Mirrors of 1 MiB in one daemon", "mirrors", []int{1, 10, 100, 1000}, []result.Metric{wall, finishing, peak}, (*bench).growJobs},
	{"connections", "S6", "NBD, random reads of 4 KiB, depth 4", "connections", []int{1, 4, 16, 64}, []result.Metric{perSecond, p99, cpuEach}, (*bench).growConnections},
}

// runGrowth measures all that grows, as far as the scale lets it.
func (b *bench) runGrowth(ctx context.Context) error {
	for _, g := range growths {
		for i, n := range g.values {
			if i > 1 && float64(n) > float64(g.values[len(g.values)-1])*b.scale {
				break // two points make a line
			}
			t := trial{scenario: g.id, like: g.like, name: fmt.Sprintf("%s %d", g.axis, n), x: float64(n)}
			if !b.wants(t.name) {
				continue
			}
			if err := g.measure(b, ctx, t, n); err != nil {
				return fmt.Errorf("%s %d: %w", g.id, n, err)
			}
		}
	}
	return nil
}

func (b *bench) growThin(ctx context.Context, t trial, n int) (err error) {
	size := int64(n) * gib
	k := &copying{source: filepath.Join(b.dir, "source.raw"), target: filepath.Join(b.dir, "target.raw")}
	k.thinTarget(size)
	if err := makeThin(ctx, k.source, size, 4*n); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(k.source)) }()
	t.note, t.metrics, t.verifies, t.run = "4 pieces of 64 KiB of data in each GiB.", copyMetrics, true, k.run(b)
	return b.measure(ctx, t)
}

func (b *bench) growJobs(ctx context.Context, t trial, n int) error {
	h := herd{folder: filepath.Join(b.ram, "jobs"), jobs: n, size: mib}
	t.metrics, t.verifies = herdMetrics, true
	t.run = func(ctx context.Context, c *contender, s result.Sample) error { return h.run(ctx, b, c, s, nil) }
	return h.with(ctx, func() error { return b.measure(ctx, t) })
}

func (b *bench) growConnections(ctx context.Context, t trial, n int) (err error) {
	image := filepath.Join(b.ram, "image.raw")
	if err := makeRandom(ctx, image, 64*mib); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(image)) }()
	t.metrics, t.servers = []result.Metric{perSecond, p50, p99, cpuEach, peak}, true
	t.run = func(ctx context.Context, c *contender, s result.Sample) error {
		return b.serve(ctx, c, image, s, func(p *process, socket string) error {
			return b.guest(ctx, p, socket, guestLoad{depth: 4, connections: n}, s)
		})
	}
	return b.measure(ctx, t)
}

// drawGrowth draws a plot for each metric of each thing that grows.
func (b *bench) drawGrowth() (err error) {
	for _, g := range growths {
		for _, m := range g.plots {
			p := growthPlot(g, m, b.report.Cases)
			if p == nil {
				continue
			}
			name := fmt.Sprintf("growth-%s-%s.svg", g.id, strings.ReplaceAll(m.Name, "_", "-"))
			err = errors.Join(err, writeFile(filepath.Join(b.plots, name), p.WriteSVG))
		}
	}
	return err
}

// growthPlot has a line for each contender, of its medians; nil if there are none.
func growthPlot(g growing, m result.Metric, cases []*result.Case) *plot.Plot {
	p := &plot.Plot{Title: g.title, X: g.axis, Y: m.Title}
	lines := map[string]int{}
	points := 0
	for _, c := range cases {
		if c.Scenario != g.id {
			continue
		}
		for _, r := range c.Rows {
			i, ok := lines[r.Contender]
			if !ok {
				i = len(p.Series)
				lines[r.Contender] = i
				p.Series = append(p.Series, plot.Series{Name: r.Contender})
			}
			if s, ok := r.Summary(m); ok {
				p.Series[i].Points = append(p.Series[i].Points, plot.Point{X: c.X, Y: s.Median})
				points++
			}
		}
	}
	if points == 0 {
		return nil
	}
	return p
}
