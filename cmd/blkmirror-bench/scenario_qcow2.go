// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/blkmirror/blkmirror/cmd/blkmirror-bench/result"
	"github.com/blkmirror/blkmirror/cmd/blkmirror/bytesize"
)

// qcow2 is S9. qemu-img makes the images and compares them; a daemon without a driver for them is reported as not supporting it.
func (b *bench) qcow2(ctx context.Context) (err error) {
	const same, flat, overlay = "qcow2 → qcow2", "qcow2 → raw", "sync=top"
	if !b.wants(same, flat, overlay) {
		return nil
	}
	if !installed("qemu-img") {
		b.skip("S9", same+" and others", "qemu-img is not installed")
		return nil
	}
	size := b.scaled(gib, 16*mib)
	folder := filepath.Join(b.ram, "qcow2")
	if err := os.Mkdir(folder, 0o755); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(folder)) }()
	in := func(name string) string { return filepath.Join(folder, name) }
	// base.raw has data everywhere, top.raw in its first half differs from it.
	if err := makeRandom(ctx, in("base.raw"), size); err != nil {
		return err
	}
	qemuImg := func(arguments ...string) error {
		_, err := output(ctx, "qemu-img", arguments...)
		return err
	}
	if err := qemuImg("convert", "-f", "raw", "-O", "qcow2", in("base.raw"), in("base.qcow2")); err != nil {
		return err
	}
	compare := func(k *copying) func(context.Context) error {
		return func(ctx context.Context) error {
			out, err := output(ctx, "qemu-img", "compare", "-f", k.sourceFormat, "-F", k.targetFormat, k.source, k.target)
			if err != nil && strings.Contains(out, "mismatch") {
				return fmt.Errorf("%w: %s", errDiffers, strings.TrimSpace(out))
			}
			return err
		}
	}
	create := func(k *copying, more ...string) func(context.Context) error {
		return func(ctx context.Context) error {
			arguments := append([]string{"create", "-q", "-f", k.targetFormat}, more...)
			_, err := output(ctx, "qemu-img", append(arguments, k.target, fmt.Sprint(size))...)
			return err
		}
	}
	note := fmt.Sprintf("%s of random data, in memory.", bytesize.Format(size))
	for _, format := range []string{"qcow2", "raw"} {
		k := &copying{source: in("base.qcow2"), sourceFormat: "qcow2", target: in("target." + format), targetFormat: format}
		k.makeTarget, k.compare = create(k), compare(k)
		if err := b.measure(ctx, trial{scenario: "S9", name: "qcow2 → " + format, metrics: []result.Metric{wall, cpu, target, peak}, verifies: true,
			memory: size, note: note, run: k.run(b)}); err != nil {
			return err
		}
	}
	if !b.wants(overlay) {
		return nil
	}
	// Names of backing files are relative, so that they are right inside any root.
	backing := []string{"-b", "base.qcow2", "-F", "qcow2"}
	f, err := os.OpenFile(in("base.raw"), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	if err := errors.Join(randomData(ctx, f, 0, size/2, 2), f.Close()); err != nil {
		return err
	}
	if err := qemuImg("convert", "-f", "raw", "-O", "qcow2", "-B", "base.qcow2", "-F", "qcow2", in("base.raw"), in("top.qcow2")); err != nil {
		return err
	}
	k := &copying{source: in("top.qcow2"), sourceFormat: "qcow2", target: in("target.qcow2"), targetFormat: "qcow2", mirror: arguments{"sync": "top"}}
	k.makeTarget, k.compare = create(k, backing...), compare(k)
	return b.measure(ctx, trial{scenario: "S9", name: overlay, metrics: []result.Metric{wall, cpu, target, peak}, verifies: true, memory: size, run: k.run(b),
		note: fmt.Sprintf("An overlay with %s of its own above the same base; the target is an overlay, too.", bytesize.Format(size/2))})
}
