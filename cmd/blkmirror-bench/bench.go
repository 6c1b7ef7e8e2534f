// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/blkmirror/blkmirror/cmd/blkmirror-bench/result"
)

// bench is one run of the program.
type bench struct {
	*settings
	out, progress io.Writer
	dir           string // all files are here
	ram           string // a folder in memory, where that is possible
	mounts        []string
	report        *result.Report
	failed        []string // what must make the program fail

	tracing     bool   // the run is one that counts system calls
	traceTarget string // only those that change this file, as the contender calls it; "" for all
}

// scenario is a group of cases.
type scenario struct {
	id, title string
	run       func(*bench, context.Context) error
}

var errTimeout = errors.New("timed out")

// run measures everything and writes the reports. What was measured until an interruption is reported as well.
func run(ctx context.Context, s *settings, out, progress io.Writer) (err error) {
	if s.quiet {
		progress = io.Discard
	}
	b := &bench{settings: s, out: out, progress: progress}
	if s.peers {
		daemons, servers, err := defaultPeers(os.Getenv("PEER_ROOT"))
		if err != nil {
			return err
		}
		b.daemons, b.servers = append(b.daemons, daemons...), append(b.servers, servers...)
		if err := b.distinct(); err != nil {
			return err
		}
	}
	for _, c := range slices.Concat(b.daemons, b.servers) {
		if err := c.installed(); err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
	}
	raiseFileLimit()
	if err := b.makeFolder(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.removeFolder()) }()
	if err := b.chooseLoad(ctx); err != nil {
		return err
	}
	b.begin(ctx)

	bounded, cancel := context.WithTimeoutCause(ctx, s.timeout, errTimeout)
	defer cancel()
	if s.growth {
		err = b.runGrowth(bounded)
	} else {
		for _, sc := range scenarios {
			if s.only != nil && !slices.Contains(s.only, sc.id) {
				continue
			}
			if err = sc.run(b, bounded); err != nil {
				err = fmt.Errorf("%s: %w", sc.id, err)
				break
			}
		}
	}
	if errors.Is(context.Cause(bounded), errTimeout) {
		err = fmt.Errorf("not everything was measured within %v", s.timeout)
	}
	return errors.Join(err, b.finish(ctx))
}

// raiseFileLimit lets daemons have as many open files as they may; scenarios with many jobs need that.
func raiseFileLimit() {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err == nil {
		limit.Cur = limit.Max
		_ = syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit) // else the daemon says what it lacks
	}
}

func (b *bench) makeFolder() (err error) {
	parent := b.folder
	if parent == "" {
		// Contenders in another root see what is below it, mounts included.
		parent = os.TempDir()
		for _, c := range slices.Concat(b.daemons, b.servers) {
			if c.root != "" {
				parent = filepath.Join(c.root, "tmp")
				break
			}
		}
	}
	if parent, err = filepath.Abs(parent); err != nil {
		return err
	}
	if b.dir, err = os.MkdirTemp(parent, "bm-"); err != nil { // short, since paths of sockets are bounded
		return err
	}
	if err = b.mountRAM(); err == nil {
		for _, c := range slices.Concat(b.daemons, b.servers) {
			for _, folder := range []string{b.dir, b.ram} {
				err = errors.Join(err, c.sees(folder))
			}
		}
	}
	if err != nil {
		err = errors.Join(err, b.removeFolder())
	}
	return err
}

func (b *bench) removeFolder() (err error) {
	for _, m := range slices.Clone(b.mounts) {
		err = errors.Join(err, b.unmount(m))
	}
	return errors.Join(err, os.RemoveAll(b.dir))
}

// begin starts the report.
func (b *bench) begin(ctx context.Context) {
	b.report = &result.Report{
		Date: time.Now().UTC().Format(time.RFC3339), Scale: b.scale, Rounds: b.rounds, Load: b.load, Ours: b.daemons[0].name,
		Machine: result.Machine{Kernel: kernel(), CPU: cpuModel(), CPUs: runtime.NumCPU(), MemoryMiB: available() / mib,
			FileSystem: fileSystem(b.dir), LoadBefore: loadAverage()},
	}
	for _, c := range slices.Concat(b.daemons, b.servers) {
		b.report.Contenders = append(b.report.Contenders, result.Contender{Name: c.name, Command: strings.Join(c.command, " "),
			Options: c.options, Version: c.version(ctx)})
	}
	m := b.report.Machine
	fmt.Fprintf(b.out, "%s, %d × %s, %s, %d MiB of memory available, load %.1f\n", m.Kernel, m.CPUs, m.CPU, m.FileSystem, m.MemoryMiB, m.LoadBefore)
	fmt.Fprintf(b.out, "scale %v, %d rounds, guests by %s, images in memory on %s\n\n", b.scale, b.rounds, b.load, fileSystem(b.ram))
	for i, c := range b.report.Contenders {
		ours := ""
		if i == 0 {
			ours = " (ours)"
		}
		if c.Options != "" {
			c.Options = " [" + c.Options + "]"
		}
		fmt.Fprintf(b.out, "- %s%s: %s%s, version %s\n", c.Name, ours, c.Command, c.Options, c.Version)
	}
	fmt.Fprintln(b.out)
}

// finish writes what is to be written at the end.
func (b *bench) finish(ctx context.Context) (err error) {
	b.report.Machine.LoadAfter = loadAverage()
	b.report.Compare()
	if len(b.report.Comparisons) > 0 {
		err = result.WriteComparisons(b.out, b.report.Comparisons)
	}
	if b.json != "" {
		err = errors.Join(err, writeFile(b.json, b.report.WriteJSON))
	}
	if b.markdown != "" {
		err = errors.Join(err, writeFile(b.markdown, func(w io.Writer) error {
			for _, c := range b.report.Cases {
				if err := result.WriteCase(w, c, b.report.Ours); err != nil {
					return err
				}
			}
			return result.WriteComparisons(w, b.report.Comparisons)
		}))
	}
	if b.plots != "" {
		err = errors.Join(err, b.drawGrowth())
	}
	if len(b.failed) > 0 {
		err = errors.Join(err, errors.New(strings.Join(b.failed, "\n")))
	}
	return errors.Join(err, context.Cause(ctx))
}

func writeFile(path string, write func(io.Writer) error) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(write(f), f.Close())
}

// scaled is a size for the scale, in whole MiB, and no less than a minimum.
func (b *bench) scaled(bytes, minimum int64) int64 {
	return max(int64(float64(bytes)*b.scale)/mib*mib, minimum)
}

// count is a number of things for the scale.
func (b *bench) count(n, minimum int) int {
	return max(int(float64(n)*b.scale+0.5), minimum)
}

// skip reports a case that cannot be had here.
func (b *bench) skip(scenario, name, why string) {
	if b.cases.MatchString(name) {
		fmt.Fprintf(b.out, "### %s %s\n\nNot run: %s\n\n", scenario, name, why)
	}
}

// installed says whether a program is on PATH.
func installed(program string) bool {
	_, err := exec.LookPath(program)
	return err == nil
}
