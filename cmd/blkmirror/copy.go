// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/blkmirror/blkmirror/cmd/blkmirror/bytesize"
	"github.com/blkmirror/blkmirror/cmd/blkmirror/follow"
	"github.com/blkmirror/blkmirror/cmd/blkmirror/internal/engine"
	"github.com/blkmirror/blkmirror/cmd/blkmirror/progress"
	"github.com/blkmirror/blkmirror/qmp"
	"github.com/blkmirror/blkmirror/qmp/api"
)

// copyJob is the name of the one job of a copy, and of what verifies it.
const (
	copyJob   = "copy"
	verifyJob = "verify"
)

// cleanUpTime is how long the end of a copy may take once it is given up.
const cleanUpTime = time.Minute

// copyFlags are the flags of copy.
type copyFlags struct {
	sourceFormat, format api.BlockdevDriver // "" to go by the name
	preallocation        api.PreallocMode
	speed                *int64
	tlsDir               string
	force, verify        bool
	offload              bool
}

func (c *cli) copyCommand() *cobra.Command {
	f := &copyFlags{}
	cmd := &cobra.Command{
		Use:   "copy SRC DST",
		Short: "copy an image, without a daemon",
		Long: `Copies an image, without a daemon. SRC and DST are files, block devices, or NBD
servers: nbd://HOST:PORT/EXPORT or nbd+unix:///EXPORT?socket=PATH.

A DST that is not there is made, as large as SRC. It stays thin: what reads as
zeroes in SRC takes no space in DST, even where SRC has space for it. A DST with
data in it is refused without --force. SRC may not be in use by a guest.

Formats go by the names: *.qcow2 is qcow2, everything else raw. Backing files of
a qcow2 image are read through; the copy is complete by itself.

When it fails or is interrupted, a DST that it made is removed; one that was
there before is left incomplete.`,
		Example: "  blkmirror copy disk.img disk.qcow2\n  blkmirror copy disk.qcow2 nbd://backup.example/disk --verify --force",
		Args:    cobra.ExactArgs(2),
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	addEnum(cmd, &f.sourceFormat, "source-format", "format of SRC (default: by its name)", formats...)
	addEnum(cmd, &f.format, "format", "format of DST (default: by its name)", formats...)
	flags.BoolVar(&f.force, "force", false, "overwrite what DST has")
	flags.BoolVar(&f.verify, "verify", false, "afterwards read both and compare")
	flags.BoolVar(&f.offload, "offload", false, "let the file system share or copy data where it can, as for a reflink;\nzeroes that SRC has space for take space in DST then")
	flags.Var(sizeFlag{&f.speed}, "speed", "`SIZE` copied per second at most; 0 is no limit")
	addEnum(cmd, &f.preallocation, "preallocation", "what to allocate of a new DST at once (default: off)",
		api.PreallocModeOff, api.PreallocModeMetadata, api.PreallocModeFalloc, api.PreallocModeFull)
	flags.StringVar(&f.tlsDir, "tls-dir", "", "`DIR` with certificates for nbds:// servers, see blkmirror tls")
	cmd.RunE = c.action(func(ctx context.Context, args []string) error { return c.copy(ctx, f, args[0], args[1]) })
	return cmd
}

// copyRun is one copy.
type copyRun struct {
	*copyFlags
	cli      *cli
	src, dst side
	begun    time.Time
	last     follow.Sample // of the job
	verified bool
}

func (c *cli) copy(ctx context.Context, f *copyFlags, from, to string) (err error) {
	r := &copyRun{copyFlags: f, cli: c, begun: time.Now()}
	if r.src, err = newSide("source", from, f.sourceFormat, f.tlsDir); err != nil {
		return err
	}
	if r.dst, err = newSide("target", to, f.format, f.tlsDir); err != nil {
		return err
	}
	if r.src.kind == sideMissing {
		return fmt.Errorf("'%s': no such file", from)
	}
	if r.src.path != "" && r.dst.path != "" && sameFile(r.src.path, r.dst.path) {
		return fmt.Errorf("'%s' and '%s' are the same file", from, to)
	}
	if err := r.src.checkFormat(f.sourceFormat != ""); err != nil {
		return err
	}
	if err := r.mirror(ctx); err != nil {
		return r.explain(err)
	}
	if f.verify {
		if err := r.compare(ctx); err != nil {
			return err
		}
		r.verified = true
	}
	return r.report()
}

// explain adds what an interrupted or failed copy leaves.
func (r *copyRun) explain(err error) error {
	left := ""
	if j := r.last.Job; j.TotalProgress > 0 {
		left = fmt.Sprintf(", with %s of %s left to copy", bytesize.Format(j.TotalProgress-j.CurrentProgress), bytesize.Format(j.TotalProgress))
	}
	switch {
	case r.dst.created:
		return fmt.Errorf("%w%s; '%s', which was not there before, is removed", err, left, r.dst.name)
	case r.dst.touched:
		return fmt.Errorf("%w%s; '%s' is incomplete", err, left, r.dst.name)
	}
	return err
}

// mirror makes the copy. The target is complete and closed when there is no error.
func (r *copyRun) mirror(ctx context.Context) (err error) {
	e := engine.New()
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanUpTime)
		defer cancel()
		if closed := e.Close(ctx); closed != nil {
			err = errors.Join(err, fmt.Errorf("closing the images: %w", closed))
		}
		if err == nil {
			err = r.dst.settle()
		}
		if err != nil {
			err = errors.Join(err, r.dst.discard())
		}
	}()
	size, err := r.src.openSource(ctx, e)
	if err != nil {
		return err
	}
	r.warnOfSpace(size)
	zero, err := r.dst.openTarget(ctx, e, size, r.copyFlags)
	if err != nil {
		return err
	}
	a := &api.BlockdevMirrorArguments{JobID: ptr(copyJob), Device: r.src.node, Target: r.dst.node, Sync: api.MirrorSyncModeFull, Speed: r.speed}
	if zero {
		a.TargetIsZero = &zero
	}
	r.dst.touched = true
	if err := e.Execute(ctx, "blockdev-mirror", a, nil); err != nil {
		return err
	}
	display := r.cli.display()
	outcome, err := followToEnd(ctx, e, copyJob, work{display})
	r.last = outcome.Last
	if closed := display.Close(); err == nil {
		err = closed
	}
	if cause := context.Cause(ctx); err != nil && cause != nil {
		return cause
	}
	if err != nil {
		return err
	}
	if outcome.Result != follow.Completed {
		return fmt.Errorf("copying '%s' to '%s': %w", r.src.name, r.dst.name, errors.New(outcome.Error))
	}
	return nil
}

// work shows how far a job is, and not how it comes to its end: that is a matter of milliseconds here.
type work struct{ progress.Display }

func (w work) Progressed(s follow.Sample) {
	if (s.Job.Status == api.JobStatusRunning || s.Job.Status == api.JobStatusReady) && s.Job.TotalProgress > 0 {
		w.Display.Progressed(s)
	}
}

// followToEnd follows a mirror until it is ready, completes it, and follows it to its end.
func followToEnd(ctx context.Context, m follow.Monitor, job string, o follow.Observer) (follow.Outcome, error) {
	outcome, err := follow.Job(ctx, m, job, follow.Options{Goal: follow.UntilReady}, o)
	if err != nil || outcome.Result != follow.Ready {
		return outcome, err
	}
	if err := m.Execute(ctx, "job-complete", &api.JobCompleteArguments{ID: job}, nil); err != nil {
		return outcome, err
	}
	return follow.Job(ctx, m, job, follow.Options{Goal: follow.UntilPending, Known: outcome.Last.Job}, o)
}

// compare opens both images anew, as whoever uses them next will, and compares them.
func (r *copyRun) compare(ctx context.Context) (err error) {
	e := engine.New()
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanUpTime)
		defer cancel()
		err = errors.Join(err, e.Close(ctx))
	}()
	var readers [2]*engine.Reader
	for i, s := range []*side{&r.src, &r.dst} {
		if err := e.Execute(ctx, "blockdev-add", s.readOptions(), nil); err != nil {
			return fmt.Errorf("'%s' cannot be verified: %w", s.name, err)
		}
		reader, err := e.Reader(ctx, s.node)
		if err != nil {
			return fmt.Errorf("'%s' cannot be verified: %w", s.name, err)
		}
		defer func() { err = errors.Join(err, reader.Close(context.WithoutCancel(ctx))) }()
		readers[i] = reader
	}
	display := r.cli.display()
	sample := follow.Sample{Job: api.JobInfo{ID: verifyJob, Type: api.JobTypeMirror, Status: api.JobStatusRunning, TotalProgress: readers[0].Size()}}
	err = engine.Compare(ctx, readers[0], readers[1], func(done int64) {
		sample.Time, sample.Job.CurrentProgress = time.Now(), done
		display.Progressed(sample)
	})
	if closed := display.Close(); err == nil {
		err = closed
	}
	if cause := context.Cause(ctx); err != nil && cause != nil {
		return fmt.Errorf("%w; '%s' is complete and was not verified", cause, r.dst.name)
	}
	return err
}

// report tells what was done.
func (r *copyRun) report() error {
	j, spent := r.last.Job, time.Since(r.begun)
	work := []struct {
		name  string
		bytes int64
	}{{"copied", qmp.Or(j.CopiedBytes, 0)}, {"zeroed", qmp.Or(j.ZeroedBytes, 0)}, {"skipped", qmp.Or(j.SkippedBytes, 0)},
		{"offloaded", qmp.Or(j.OffloadedBytes, 0)}}
	source, target := r.src.allocated(), r.dst.allocated()
	if r.cli.json {
		o := qmp.NewObject(qmp.Member{Name: "source", Value: r.src.name}, qmp.Member{Name: "target", Value: r.dst.name},
			qmp.Member{Name: "size", Value: r.dst.size})
		for _, w := range work {
			o.Set(w.name+"-bytes", w.bytes)
		}
		for _, a := range []struct {
			name  string
			bytes *int64
		}{{"source-allocated", source}, {"target-allocated-before", r.dst.before}, {"target-allocated", target}} {
			if a.bytes != nil {
				o.Set(a.name, *a.bytes)
			}
		}
		o.Set("seconds", spent.Seconds())
		o.Set("verified", r.verified)
		r.cli.say(o, "")
		return nil
	}
	rows := [][]string{}
	for _, w := range work {
		rows = append(rows, []string{w.name, bytesize.Format(w.bytes)})
	}
	rows = append(rows, []string{"source", allocationText(source) + " of " + bytesize.Format(r.dst.size)},
		[]string{"target", allocationText(target) + ", " + allocationText(r.dst.before) + " before"},
		[]string{"time", spent.Round(time.Millisecond).String()})
	if r.verified {
		rows = append(rows, []string{"verified", "both read the same"})
	}
	return printTable(r.cli, fmt.Sprintf("'%s' is a copy of '%s'", r.dst.name, r.src.name), rows, func(row []string) []string { return row })
}

func allocationText(n *int64) string {
	if n == nil {
		return "allocation unknown"
	}
	return bytesize.Format(*n) + " allocated"
}

// display is for how far a job is.
func (c *cli) display() progress.Display {
	if c.json {
		return progress.NewJSON(c.stdout)
	}
	return progress.New(c.stdout)
}
