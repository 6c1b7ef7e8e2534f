// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"errors"
	"os"

	"github.com/blkmirror/blkmirror/cmd/blkmirror-bench/result"
)

// Names of the nodes of a mirror.
const (
	sourceNode = "source"
	targetNode = "target"
	jobID      = "mirror"
)

// copying is a mirror of an image that no guest uses: what is measured is from the command to READY.
type copying struct {
	source, target             string // files
	sourceFormat, targetFormat string // "" for raw
	direct                     bool
	sourceNode, targetNode     arguments // further options
	mirror                     arguments
	makeTarget                 func(ctx context.Context) error
	compare                    func(ctx context.Context) error // nil for raw images
}

// copyMetrics are what a copying measures.
var copyMetrics = []result.Metric{wall, cpu, target, peak}

// run makes one copy.
func (k *copying) run(b *bench) func(ctx context.Context, c *contender, s result.Sample) error {
	return func(ctx context.Context, c *contender, s result.Sample) (err error) {
		if err := k.makeTarget(ctx); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, os.Remove(k.target)) }()
		d, err := b.startDaemon(ctx, c)
		if err != nil {
			return err
		}
		defer d.kill()
		if err := d.add(ctx, d.node(sourceNode, cmp.Or(k.sourceFormat, "raw"), k.source, k.direct, k.sourceNode)); err != nil {
			return err
		}
		if err := d.add(ctx, d.node(targetNode, cmp.Or(k.targetFormat, "raw"), k.target, k.direct, k.targetNode)); err != nil {
			return err
		}
		m, err := b.meter(ctx, d.process)
		if err != nil {
			return err
		}
		if err := d.startMirror(ctx, jobID, sourceNode, targetNode, k.mirror); err != nil {
			return err
		}
		if err := d.awaitJobs(ctx, "BLOCK_JOB_READY", 1); err != nil {
			return err
		}
		took, used, err := m.stop(s)
		if err != nil {
			return err
		}
		putTimes(s, took, used, 1)
		if err := d.complete(ctx, jobID); err != nil {
			return err
		}
		if err := putPeak(s, d.process); err != nil {
			return err
		}
		if err := d.quit(ctx); err != nil {
			return err
		}
		if err := putAllocated(s, target, k.target); err != nil {
			return err
		}
		if k.compare != nil {
			return k.compare(ctx)
		}
		return compareRaw(ctx, k.source, k.target)
	}
}

// thinTarget makes an empty raw target of the source's size.
func (k *copying) thinTarget(size int64) *copying {
	k.makeTarget = func(context.Context) error { return makeSparse(k.target, size) }
	return k
}
