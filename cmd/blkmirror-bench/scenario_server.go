// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/blkmirror/blkmirror/cmd/blkmirror-bench/result"
	"github.com/blkmirror/blkmirror/cmd/blkmirror/bytesize"
)

// serve has a contender, daemon or NBD server, export an image while use runs.
func (b *bench) serve(ctx context.Context, c *contender, image string, s result.Sample, use func(p *process, socket string) error) error {
	if c.isServer(b) {
		return b.serveAlone(ctx, c, image, s, use)
	}
	d, err := b.startDaemon(ctx, c)
	if err != nil {
		return err
	}
	defer d.kill()
	if err := d.add(ctx, d.node(sourceNode, "raw", image, false, nil)); err != nil {
		return err
	}
	if err := d.export(ctx, sourceNode); err != nil {
		return err
	}
	if err := use(d.process, d.nbd); err != nil {
		return err
	}
	return errors.Join(putPeak(s, d.process), d.quit(ctx))
}

func (b *bench) serveAlone(ctx context.Context, c *contender, image string, s result.Sample, use func(p *process, socket string) error) error {
	socket, log := b.scratch("nbd"), b.scratch("log")
	defer os.Remove(log)
	defer os.Remove(socket)
	p, err := startProcess(ctx, c.argv(strings.NewReplacer("{socket}", c.inside(socket), "{file}", c.inside(image))), log)
	if err != nil {
		return err
	}
	defer func() {
		_ = p.cmd.Process.Kill() // it may have ended
		<-p.exited
	}()
	conn, err := p.dial(ctx, socket)
	if err != nil {
		return err
	}
	conn.Close()
	if err := use(p, socket); err != nil {
		return err
	}
	if err := putPeak(s, p); err != nil {
		return err
	}
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	return p.wait(ctx)
}

func (c *contender) isServer(b *bench) bool {
	for _, s := range b.servers {
		if s == c {
			return true
		}
	}
	return false
}

// server is S6.
func (b *bench) server(ctx context.Context) (err error) {
	size := b.scaled(512*mib, 64*mib)
	image, input := filepath.Join(b.ram, "image.raw"), filepath.Join(b.ram, "input.raw")
	if err := makeRandom(ctx, image, size); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(image)) }()
	note := fmt.Sprintf("An image of %s in memory.", bytesize.Format(size))

	nbdcopy := func(s result.Sample, ctx context.Context, c *contender, image string, arguments func(uri string) []string) error {
		return b.serve(ctx, c, image, s, func(p *process, socket string) error {
			m, err := b.meter(ctx, p)
			if err != nil {
				return err
			}
			_, err = output(ctx, "nbdcopy", arguments("nbd+unix:///"+exportName+"?socket="+socket)...)
			took, used, err2 := m.stop(s)
			if err := errors.Join(err, err2); err != nil {
				return err
			}
			putTimes(s, took, used, inMiB(size)) // an operation is a MiB
			s[rate.Name] = inMiB(size) / took.Seconds()
			return nil
		})
	}
	copies := []trial{
		{scenario: "S6", name: "nbdcopy out", servers: true, metrics: []result.Metric{rate, cpu, peak}, memory: size, note: note + " It is read once, and thrown away.",
			run: func(ctx context.Context, c *contender, s result.Sample) error {
				return nbdcopy(s, ctx, c, image, func(uri string) []string { return []string{uri, "null:"} })
			}},
		{scenario: "S6", name: "nbdcopy in", servers: true, metrics: []result.Metric{rate, cpu, peak}, memory: size, verifies: true,
			note: note + " It is written once, to an empty file, with other data.",
			run: func(ctx context.Context, c *contender, s result.Sample) error {
				written := filepath.Join(b.ram, "written.raw")
				if err := makeSparse(written, size); err != nil {
					return err
				}
				defer os.Remove(written)
				if err := nbdcopy(s, ctx, c, written, func(uri string) []string { return []string{input, uri} }); err != nil {
					return err
				}
				return compareRaw(ctx, input, written)
			}},
	}
	for _, t := range copies {
		if !installed("nbdcopy") {
			b.skip(t.scenario, t.name, "nbdcopy is not installed")
			continue
		}
		if t.verifies && b.wants(t.name) {
			if err := makeImage(input, size, func(f *os.File) error { return randomData(ctx, f, 0, size, 2) }); err != nil {
				return err
			}
		}
		if err := b.measure(ctx, t); err != nil {
			return err
		}
	}
	_ = os.Remove(input) // only there if it was needed

	for _, write := range []bool{false, true} {
		for _, depth := range []int{1, 16, 64} {
			name := fmt.Sprintf("random reads, depth %d", depth)
			if write {
				name = fmt.Sprintf("random writes, depth %d", depth)
			}
			if err := b.measure(ctx, trial{scenario: "S6", name: name, servers: true, note: note + " Requests of 4 KiB on one connection.",
				metrics: []result.Metric{perSecond, p50, p99, cpuEach},
				run: func(ctx context.Context, c *contender, s result.Sample) error {
					return b.serve(ctx, c, image, s, func(p *process, socket string) error {
						return b.guest(ctx, p, socket, guestLoad{write: write, depth: depth, connections: 1}, s)
					})
				}}); err != nil {
				return err
			}
		}
	}
	return nil
}
