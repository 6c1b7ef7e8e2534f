// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/blkmirror/blkmirror/cmd/blkmirror/follow"
	"github.com/blkmirror/blkmirror/cmd/blkmirror/progress"
	"github.com/blkmirror/blkmirror/qmp"
	"github.com/blkmirror/blkmirror/qmp/api"
)

// mirrorFlags are the flags of mirror.
type mirrorFlags struct {
	arguments      api.BlockdevMirrorArguments
	job            string
	replaces       string
	filter         string
	bitmap         string
	granularity    *int64
	latency        time.Duration
	wait, complete bool
	verify, digest bool
	force, dryRun  bool
}

func (c *cli) mirrorCommand() *cobra.Command {
	return group("mirror", "start, watch and steer mirrors",
		append([]*cobra.Command{c.startCommand(), c.modeCommand(), c.latencyCommand(), c.mirrorVerifyCommand()}, c.verbCommands()...)...)
}

func (c *cli) modeCommand() *cobra.Command {
	modes := []api.MirrorCopyMode{api.MirrorCopyModeBackground, api.MirrorCopyModeWriteBlocking, api.MirrorCopyModeAuto}
	var mode api.MirrorCopyMode
	f := enumFlag[api.MirrorCopyMode]{&mode, modes}
	return &cobra.Command{
		Use: "mode JOB {" + f.Type() + "}", Short: "change when guests' writes reach the target", Args: cobra.ExactArgs(2),
		RunE: c.action(func(ctx context.Context, args []string) error {
			id := args[0]
			if err := f.Set(args[1]); err != nil {
				return usage("'%s': %v", args[1], err)
			}
			return c.with(ctx, func(s *session) error {
				change := &api.BlockJobChangeOptions{ID: id, Type: api.JobTypeMirror, Mirror: &api.BlockJobChangeOptionsMirror{CopyMode: mode}}
				if err := s.Execute(ctx, "block-job-change", change, nil); err != nil {
					return refused(id, err)
				}
				c.say(jobObject(id), "job '%s' copies in mode %s", id, mode)
				return nil
			})
		}),
	}
}

func (c *cli) latencyCommand() *cobra.Command {
	return &cobra.Command{
		Use: "latency JOB TIME", Short: "let a mirror give way while guests wait longer than this for the source; 0 is no limit", Args: cobra.ExactArgs(2),
		RunE: c.action(func(ctx context.Context, args []string) error {
			id := args[0]
			most, err := time.ParseDuration(args[1])
			if err != nil || most < 0 {
				return usage("'%s' is no TIME such as 5ms", args[1])
			}
			return c.with(ctx, func(s *session) error {
				ns := most.Nanoseconds()
				change := &api.BlockJobChangeOptions{ID: id, Type: api.JobTypeMirror, Mirror: &api.BlockJobChangeOptionsMirror{MaxGuestLatency: &ns}}
				if err := s.Execute(ctx, "block-job-change", change, nil); err != nil {
					return refused(id, err)
				}
				if most == 0 {
					c.say(jobObject(id), "job '%s' does not give way to guests", id)
				} else {
					c.say(jobObject(id), "job '%s' gives way while guests wait longer than %v", id, most)
				}
				return nil
			})
		}),
	}
}

func (c *cli) startCommand() *cobra.Command {
	f := &mirrorFlags{}
	cmd := &cobra.Command{
		Use:   "start SOURCE TARGET",
		Short: "copy a node to another one while it is in use",
		Long: `Starts a job that copies node SOURCE to node TARGET, and keeps them equal until
the job is completed, when TARGET takes SOURCE's place, or cancelled.

Before anything changes it checks whether both nodes fit: sizes, space, locks,
users, alignment. All problems are named, and then it does not start, unless
--force is given. The daemon has the last word in any case.

With --wait it shows how far the copy is, and ends when TARGET is in step with
SOURCE. With --complete it then completes the job, too. When it is interrupted
or runs into --timeout, the job goes on.`,
		Example: "  blkmirror mirror start disk copy --wait\n  blkmirror mirror start disk copy --copy-mode write-blocking --speed 100M --complete",
		Args:    cobra.ExactArgs(2),
	}
	flags, a := cmd.Flags(), &f.arguments
	flags.SortFlags = false
	flags.StringVar(&f.job, "job", "", "`ID` of the job (default: mirror-SOURCE)")
	addEnum(cmd, &a.Sync, "sync", "what to copy (default: full)",
		api.MirrorSyncModeFull, api.MirrorSyncModeTop, api.MirrorSyncModeNone, api.MirrorSyncModeBitmap, api.MirrorSyncModeIncremental)
	flags.StringVar(&f.bitmap, "bitmap", "", "`NAME` of SOURCE's bitmap that says what to copy; sync=bitmap unless given")
	addEnum(cmd, &a.CopyMode, "copy-mode", "when guests' writes reach the target (default: background)",
		api.MirrorCopyModeBackground, api.MirrorCopyModeWriteBlocking, api.MirrorCopyModeAuto)
	flags.Var(sizeFlag{&f.granularity}, "granularity", "`SIZE` of the pieces whose state is kept, a power of two")
	flags.Var(sizeFlag{&a.BufSize}, "buf-size", "`SIZE` of all data on its way at once")
	flags.Var(sizeFlag{&a.Speed}, "speed", "`SIZE` copied per second at most; 0 is no limit")
	flags.DurationVar(&f.latency, "max-guest-latency", 0, "give way while guests wait longer than this `TIME` for SOURCE; 0 is no limit")
	policies := []api.BlockdevOnError{api.BlockdevOnErrorReport, api.BlockdevOnErrorIgnore, api.BlockdevOnErrorStop,
		api.BlockdevOnErrorEnospc, api.BlockdevOnErrorAuto}
	addEnum(cmd, &a.OnSourceError, "on-source-error", "what to do when reading fails (default: report)", policies...)
	addEnum(cmd, &a.OnTargetError, "on-target-error", "what to do when writing fails (default: report)", policies...)
	flags.StringVar(&f.filter, "filter-node-name", "", "`NAME` of the node that is put above SOURCE")
	flags.StringVar(&f.replaces, "replaces", "", "`NODE` whose place TARGET takes (default: SOURCE)")
	addOptionalBool(flags, &a.TargetIsZero, "target-is-zero", "TARGET reads as zeroes already")
	addOptionalBool(flags, &a.AutoFinalize, "auto-finalize", "do not wait for finalize (default: true)")
	addOptionalBool(flags, &a.AutoDismiss, "auto-dismiss", "do not wait for dismiss (default: true)")
	flags.BoolVar(&f.verify, "verify", false, "when TARGET is in step compare both once over, before the job completes")
	flags.BoolVar(&f.digest, "digest", false, "tell the BLAKE3 digest of both disks at completion; implies --verify")
	flags.BoolVar(&f.wait, "wait", false, "show progress until TARGET is in step")
	flags.BoolVar(&f.complete, "complete", false, "then complete the job and wait for its end; implies --wait")
	flags.BoolVar(&f.dryRun, "dry-run", false, "only check, and show the command")
	flags.BoolVar(&f.force, "force", false, "start without checks")
	cmd.RunE = c.action(func(ctx context.Context, args []string) error {
		if err := f.finish(args[0], args[1]); err != nil {
			return err
		}
		return c.with(ctx, func(s *session) error { return c.mirror(ctx, s, f) })
	})
	return cmd
}

// finish makes arguments of the flags.
func (f *mirrorFlags) finish(source, target string) error {
	a := &f.arguments
	a.Device, a.Target = source, target
	if f.job == "" {
		// A name that the daemon chose begins with a mark that no id has.
		f.job = "mirror-" + strings.TrimPrefix(source, "#")
	}
	a.JobID = &f.job
	switch ns := f.latency.Nanoseconds(); {
	case ns < 0:
		return usage("--max-guest-latency %v is negative", f.latency)
	case ns > 0:
		a.MaxGuestLatency = &ns
	}
	if f.filter != "" {
		a.FilterNodeName = &f.filter
	}
	if f.replaces != "" {
		a.Replaces = &f.replaces
	}
	if f.bitmap != "" {
		a.Bitmap = &f.bitmap
		if a.Sync == "" {
			a.Sync = api.MirrorSyncModeBitmap
		}
	}
	if a.Sync == "" {
		a.Sync = api.MirrorSyncModeFull
	}
	if f.verify || f.digest {
		a.XVerify = ptr(true)
	}
	if f.digest {
		a.XVerifyDigest = api.DiskDigestBlake3
	}
	if f.granularity != nil {
		if *f.granularity > math.MaxUint32 {
			return usage("--granularity %d is too large", *f.granularity)
		}
		a.Granularity = ptr(uint32(*f.granularity))
	}
	return nil
}

func (c *cli) mirror(ctx context.Context, s *session, f *mirrorFlags) error {
	if f.dryRun || !f.force {
		found, err := checkMirror(ctx, s, host{s.local(), s.daemon}, &f.arguments)
		if err != nil {
			return err
		}
		if f.dryRun {
			return c.dryRun(f, found)
		}
		if err := found.err("mirror start"); err != nil {
			return err
		}
		for _, w := range found {
			if w.state == checkWarning {
				fmt.Fprintf(c.stderr, "blkmirror: %s: %s\n", w.name, w.detail)
			}
		}
	}
	if err := s.Execute(ctx, "blockdev-mirror", &f.arguments, nil); err != nil {
		return err
	}
	c.say(jobObject(f.job), "job '%s' started: %s to %s", f.job, f.arguments.Device, f.arguments.Target)
	if !f.wait && !f.complete {
		return nil
	}
	return c.show(ctx, s, f.job, func(d progress.Display) (follow.Outcome, error) {
		outcome, err := follow.Job(ctx, s, f.job, follow.Options{Goal: follow.UntilReady}, d)
		if err != nil || outcome.Result != follow.Ready || !f.complete {
			return outcome, err
		}
		if err := s.Execute(ctx, "job-complete", &api.JobCompleteArguments{ID: f.job}, nil); err != nil {
			return outcome, err
		}
		return follow.Job(ctx, s, f.job, follow.Options{Goal: follow.UntilPending, Known: outcome.Last.Job}, d)
	})
}

// dryRun shows what was found, and what would be done.
func (c *cli) dryRun(f *mirrorFlags, found checks) error {
	command := qmp.NewObject(qmp.Member{Name: "execute", Value: "blockdev-mirror"}, qmp.Member{Name: "arguments", Value: &f.arguments})
	if c.json {
		if err := c.printJSON(qmp.NewObject(qmp.Member{Name: "checks", Value: found.objects()}, qmp.Member{Name: "command", Value: command})); err != nil {
			return err
		}
	} else {
		if err := found.table(c); err != nil {
			return err
		}
		fmt.Fprintf(c.stdout, "\nThe command, which was not sent:\n%s\n", qmp.Encode(command))
	}
	if n := found.count(checkProblem); n > 0 {
		return &checksError{what: "mirror start", problems: n}
	}
	return nil
}

func jobObject(id string) *qmp.Object { return qmp.NewObject(qmp.Member{Name: "job", Value: id}) }
