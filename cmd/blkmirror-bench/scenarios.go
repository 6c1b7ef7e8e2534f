// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/blkmirror/blkmirror/cmd/blkmirror/bytesize"
)

// scenarios are all scenarios, in the order in which they run.
var scenarios []scenario

func init() { // here, since the functions refer to the settings, which refer to the list
	scenarios = []scenario{
		{"S1", "raw → raw, random data: page cache, O_DIRECT, a file system with reflinks", (*bench).bulk},
		{"S2", "raw → raw, 1 TiB thin disk with 4096 pieces of 64 KiB", (*bench).thin},
		{"S3", "raw → raw, zeroes that were written, with detect-zeroes off, on, unmap", (*bench).zeroes},
		{"S4", "a guest's 4 KiB random writes, without a mirror and beside one in both modes", (*bench).guests},
		{"S5", "a guest's zero writes and trims beside a write-blocking mirror", (*bench).zeroWrites},
		{"S6", "NBD server: nbdcopy in and out, 4 KiB random reads and writes", (*bench).server},
		{"S7", "100 mirrors in one daemon; query-jobs per second", (*bench).manyJobs},
		{"S8", "start-up: exec to greeting, memory when idle", (*bench).startUp},
		{"S9", "qcow2 → qcow2, qcow2 → raw, overlay with sync=top", (*bench).qcow2},
	}
}

// wants says whether any of these cases is to be run, so that their images are needed.
func (b *bench) wants(names ...string) bool {
	for _, name := range names {
		if b.cases.MatchString(name) {
			return true
		}
	}
	return false
}

// bulk is S1.
func (b *bench) bulk(ctx context.Context) (err error) {
	const cached, direct, reflink = "page cache", "O_DIRECT", "reflink"
	size := b.scaled(2*gib, 16*mib)
	if b.wants(cached, direct) {
		k := &copying{source: filepath.Join(b.dir, "source.raw"), target: filepath.Join(b.dir, "target.raw")}
		k.thinTarget(size)
		if err := makeRandom(ctx, k.source, size); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, os.Remove(k.source)) }()
		t := trial{scenario: "S1", name: cached, metrics: copyMetrics, verifies: true, memory: size, folder: b.dir, run: k.run(b),
			note: fmt.Sprintf("%s of random data to an empty file on %s, from the command to READY.", bytesize.Format(size), fileSystem(b.dir))}
		if err := b.measure(ctx, t); err != nil {
			return err
		}
		t.name, t.note, k.direct = direct, t.note+" With cache.direct=on for both.", true
		if err := b.measure(ctx, t); err != nil {
			return err
		}
	}
	if !b.wants(reflink) {
		return nil
	}
	size /= 2
	folder, reason := b.mountXFS(ctx, 4*size)
	if reason != "" {
		b.skip("S1", reflink, reason)
		return nil
	}
	defer func() { err = errors.Join(err, b.unmount(folder), os.Remove(folder+".img")) }()
	k := &copying{source: filepath.Join(folder, "source.raw"), target: filepath.Join(folder, "target.raw")}
	k.thinTarget(size)
	if err := makeRandom(ctx, k.source, size); err != nil {
		return err
	}
	return b.measure(ctx, trial{scenario: "S1", name: reflink, metrics: copyMetrics, verifies: true, memory: size, folder: folder, run: k.run(b),
		note: fmt.Sprintf("%s of random data to an empty file on XFS, which can share extents.", bytesize.Format(size))})
}

// thin is S2.
func (b *bench) thin(ctx context.Context) (err error) {
	const plain, coarse = "thin", "thin, granularity=1M"
	if !b.wants(plain, coarse) {
		return nil
	}
	pieces := b.count(4096, 16)
	size := int64(pieces) * 256 * mib
	k := &copying{source: filepath.Join(b.dir, "source.raw"), target: filepath.Join(b.dir, "target.raw")}
	k.thinTarget(size)
	if err := makeThin(ctx, k.source, size, pieces); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(k.source)) }()
	has, err := allocated(k.source)
	if err != nil {
		return err
	}
	t := trial{scenario: "S2", name: plain, metrics: copyMetrics, verifies: true, memory: int64(pieces) * 64 * kib, folder: b.dir, run: k.run(b),
		note: fmt.Sprintf("%s with %d pieces of 64 KiB of data; the source has %s allocated.", bytesize.Format(size), pieces, bytesize.Format(has))}
	if err := b.measure(ctx, t); err != nil {
		return err
	}
	t.name, k.mirror = coarse, arguments{"granularity": mib}
	return b.measure(ctx, t)
}

// zeroes is S3.
func (b *bench) zeroes(ctx context.Context) (err error) {
	if !b.wants("detect-zeroes off", "detect-zeroes on", "detect-zeroes unmap") {
		return nil
	}
	size := b.scaled(2*gib, 16*mib)
	k := &copying{source: filepath.Join(b.dir, "source.raw"), target: filepath.Join(b.dir, "target.raw")}
	k.thinTarget(size)
	if err := makeZeroes(ctx, k.source, size); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(k.source)) }()
	for _, detect := range []string{"off", "on", "unmap"} {
		k.targetNode = arguments{"detect-zeroes": detect}
		if detect == "unmap" {
			k.targetNode["discard"] = "unmap"
		}
		if err := b.measure(ctx, trial{scenario: "S3", name: "detect-zeroes " + detect, metrics: copyMetrics, verifies: true, memory: size, folder: b.dir, run: k.run(b),
			note: fmt.Sprintf("%s of zeroes that were written to the source; the target is empty.", bytesize.Format(size))}); err != nil {
			return err
		}
	}
	return nil
}
