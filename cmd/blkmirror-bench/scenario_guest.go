// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/blkmirror/blkmirror/block/nbd"
	"github.com/blkmirror/blkmirror/cmd/blkmirror-bench/nbdload"
	"github.com/blkmirror/blkmirror/cmd/blkmirror-bench/result"
	"github.com/blkmirror/blkmirror/cmd/blkmirror/bytesize"
)

// pair are the images of a mirror under a guest.
type pair struct {
	source, target string
	size           int64
	copyMode       string    // "" for no mirror
	node           arguments // further options of both nodes
}

// withPair exports the source, mirrors it, and lets the guest work once the mirror is ready. Then the mirror is completed, the
// daemon ends, and the images are compared.
func (b *bench) withPair(ctx context.Context, c *contender, p pair, s result.Sample, guest func(d *daemon) error) (err error) {
	if p.copyMode != "" {
		if err := makeSparse(p.target, p.size); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, os.Remove(p.target)) }()
	}
	d, err := b.startDaemon(ctx, c)
	if err != nil {
		return err
	}
	defer d.kill()
	if err := d.add(ctx, d.node(sourceNode, "raw", p.source, false, p.node)); err != nil {
		return err
	}
	if err := d.export(ctx, sourceNode); err != nil {
		return err
	}
	if p.copyMode != "" {
		if err := d.add(ctx, d.node(targetNode, "raw", p.target, false, p.node)); err != nil {
			return err
		}
		if err := d.startMirror(ctx, jobID, sourceNode, targetNode, arguments{"copy-mode": p.copyMode}); err != nil {
			return err
		}
		if err := d.awaitJobs(ctx, "BLOCK_JOB_READY", 1); err != nil {
			return err
		}
	}
	if err := guest(d); err != nil {
		return err
	}
	if p.copyMode != "" {
		if err := d.complete(ctx, jobID); err != nil {
			return err
		}
	}
	if err := putPeak(s, d.process); err != nil {
		return err
	}
	if err := d.quit(ctx); err != nil || p.copyMode == "" {
		return err
	}
	return compareRaw(ctx, p.source, p.target)
}

// guests is S4.
func (b *bench) guests(ctx context.Context) (err error) {
	size := b.scaled(512*mib, 64*mib)
	p := pair{source: filepath.Join(b.ram, "source.raw"), target: filepath.Join(b.ram, "target.raw"), size: size}
	name := func(mode string, depth int) string {
		if mode == "" {
			mode = "no mirror"
		}
		return fmt.Sprintf("%s, depth %d", mode, depth)
	}
	made := false
	for _, depth := range []int{1, 16} {
		for _, mode := range []string{"", "background", "write-blocking"} {
			if !b.wants(name(mode, depth)) {
				continue
			}
			if !made {
				if err := makeRandom(ctx, p.source, size); err != nil {
					return err
				}
				defer func() { err = errors.Join(err, os.Remove(p.source)) }()
				made = true
			}
			p.copyMode = mode
			metrics := []result.Metric{perSecond, p50, p99, cpuEach, left, peak}
			if mode == "" {
				metrics = []result.Metric{perSecond, p50, p99, cpuEach, peak}
			}
			images := p
			if err := b.measure(ctx, trial{scenario: "S4", name: name(mode, depth), metrics: metrics, verifies: mode != "", memory: 2 * size,
				note: fmt.Sprintf("Random writes of 4 KiB to an NBD export of %s in memory; the mirror is ready before. "+
					"\"left\" is what it has yet to copy when the guest stops.", bytesize.Format(size)),
				run: func(ctx context.Context, c *contender, s result.Sample) error {
					return b.withPair(ctx, c, images, s, func(d *daemon) error {
						if err := b.guest(ctx, d.process, d.nbd, guestLoad{write: true, depth: depth, connections: 1}, s); err != nil || mode == "" {
							return err
						}
						n, err := d.remaining(ctx, jobID)
						s[left.Name] = inMiB(n)
						return err
					})
				}}); err != nil {
				return err
			}
		}
	}
	return nil
}

// zeroWrites is S5.
func (b *bench) zeroWrites(ctx context.Context) (err error) {
	const block = 64 << 10
	requests := b.count(4096, 256)
	size := int64(requests) * block
	for _, k := range []struct {
		name, note string
		command    nbd.Command
		fill       func(path string) error
	}{
		{"zero writes", "on an empty disk with an empty target.", nbd.CmdWriteZeroes, func(path string) error { return makeSparse(path, size) }},
		{"trims", "on a disk full of data, whose target is, too.", nbd.CmdTrim, func(path string) error { return makeRandom(ctx, path, size) }},
	} {
		p := pair{source: filepath.Join(b.ram, "source.raw"), target: filepath.Join(b.ram, "target.raw"), size: size,
			copyMode: "write-blocking", node: arguments{"discard": "unmap"}}
		if err := b.measure(ctx, trial{scenario: "S5", name: k.name, verifies: true, changes: p.target,
			note:    fmt.Sprintf("%d requests of 64 KiB, 16 at a time, %s The sizes are what is allocated afterwards.", requests, k.note),
			metrics: []result.Metric{wall, cpu, p99, source, target},
			run: func(ctx context.Context, c *contender, s result.Sample) error {
				if err := k.fill(p.source); err != nil {
					return err
				}
				defer os.Remove(p.source) // a failure shows in the next run
				return b.withPair(ctx, c, p, s, func(d *daemon) error {
					m, err := b.meter(ctx, d.process)
					if err != nil {
						return err
					}
					r, err := nbdload.Run(ctx, d.nbd, exportName, nbdload.Load{Command: k.command, Block: block, Depth: 16, Connections: 1,
						Requests: int64(requests)})
					took, used, err2 := m.stop(s)
					if err := errors.Join(err, err2); err != nil {
						return err
					}
					putTimes(s, took, used, float64(r.Requests))
					s[p99.Name] = float64(r.P99) / 1e3
					return errors.Join(putAllocated(s, source, p.source), putAllocated(s, target, p.target))
				})
			}}); err != nil {
			return err
		}
	}
	return nil
}
