// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/blkmirror/blkmirror/cmd/blkmirror/bytesize"
	"github.com/blkmirror/blkmirror/cmd/blkmirror/follow"
	"github.com/blkmirror/blkmirror/cmd/blkmirror/progress"
	"github.com/blkmirror/blkmirror/qmp"
	"github.com/blkmirror/blkmirror/qmp/api"
)

// differenceError means that two disks of a daemon are not equal, or were not.
type differenceError struct{ text string }

func (e *differenceError) Error() string { return e.text }

// verifyCommand compares two nodes.
func (c *cli) verifyCommand() *cobra.Command {
	a := &api.BlockdevVerifyArguments{}
	digest := false
	cmd := &cobra.Command{
		Use:   "verify NODE NODE",
		Short: "compare two nodes that nobody writes to",
		Long: `Compares two nodes of a daemon, that nobody writes to meanwhile. A difference is
status 7; the error says where and how much. The disks of a running mirror are
compared with blkmirror mirror verify.`,
		Args: cobra.ExactArgs(2),
	}
	flags := cmd.Flags()
	flags.StringVar(&a.JobID, "job", "", "`ID` of the job (default: verify-NODE)")
	flags.BoolVar(&digest, "digest", false, "tell the BLAKE3 digest of both, if they are equal")
	flags.Var(sizeFlag{&a.Speed}, "speed", "`SIZE` of one side compared per second at most; 0 is no limit")
	cmd.RunE = c.action(func(ctx context.Context, args []string) error {
		a.Device, a.Target = args[0], args[1]
		if a.JobID == "" {
			a.JobID = "verify-" + args[0]
		}
		if digest {
			a.Digest = api.DiskDigestBlake3
		}
		return c.with(ctx, func(s *session) error { return c.compareNodes(ctx, s, a) })
	})
	return cmd
}

// compareNodes runs a comparison, and keeps the job in the list until its result was seen.
func (c *cli) compareNodes(ctx context.Context, s *session, a *api.BlockdevVerifyArguments) error {
	a.AutoDismiss = ptr(false)
	if err := s.Execute(ctx, "blockdev-verify", a, nil); err != nil {
		return err
	}
	display := c.display()
	outcome, err := follow.Job(ctx, s, a.JobID, follow.Options{Goal: follow.UntilEnd}, display)
	if closed := display.Close(); err == nil {
		err = closed
	}
	if err != nil {
		return err
	}
	var jobs []api.JobInfo
	if err := s.Execute(ctx, "query-jobs", nil, &jobs); err != nil {
		return err
	}
	if err := s.Execute(ctx, "job-dismiss", &api.JobDismissArguments{ID: a.JobID}, nil); err != nil {
		return refused(a.JobID, err)
	}
	last := outcome.Last.Job
	for _, j := range jobs {
		if j.ID == a.JobID {
			last = j
		}
	}
	switch {
	case outcome.Result == follow.Failed && qmp.Or(last.DifferingBytes, 0) > 0:
		return &differenceError{outcome.Error}
	case outcome.Result != follow.Completed:
		return &jobError{a.JobID, outcome}
	}
	told := qmp.NewObject(qmp.Member{Name: "job", Value: a.JobID}, qmp.Member{Name: "verified-bytes", Value: qmp.Or(last.VerifiedBytes, 0)})
	sum := outcome.Last.Job.Digest
	if sum != nil {
		told.Set("digest", *sum)
	}
	c.say(told, "'%s' and '%s' are equal: %s compared", a.Device, a.Target, bytesize.Format(qmp.Or(last.VerifiedBytes, 0)))
	if sum != nil {
		c.say(nil, "digest of both disks: %s", *sum)
	}
	return nil
}

// mirrorVerifyCommand has a mirror compare its disks.
func (c *cli) mirrorVerifyCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "verify JOB",
		Short: "have a mirror that is ready compare its disks, while guests write",
		Long: `Has a mirror that is ready compare its disks once over, and waits until it has.
What differs is copied again; that there was a difference is status 7. When it
is interrupted or runs into --timeout, the comparison goes on.`,
		Args: cobra.ExactArgs(1),
		RunE: c.action(func(ctx context.Context, args []string) error {
			id := args[0]
			return c.with(ctx, func(s *session) error {
				if err := s.Execute(ctx, "x-blockdev-mirror-verify", &api.XBlockdevMirrorVerifyArguments{ID: id}, nil); err != nil {
					return refused(id, err)
				}
				display := c.display()
				last, err := followPass(ctx, s, id, display)
				if closed := display.Close(); err == nil {
					err = closed
				}
				if err != nil {
					return fmt.Errorf("job '%s': %w", id, err)
				}
				if n := qmp.Or(last.DifferingBytes, 0); n > 0 {
					return &differenceError{fmt.Sprintf("job '%s': %d bytes differed, and were copied again", id, n)}
				}
				c.say(qmp.NewObject(qmp.Member{Name: "job", Value: id}, qmp.Member{Name: "verified-bytes", Value: qmp.Or(last.VerifiedBytes, 0)}),
					"job '%s': source and target are equal: %s compared", id, bytesize.Format(qmp.Or(last.VerifiedBytes, 0)))
				return nil
			})
		}),
	}
}

// followPass shows how far a comparison is, until nothing is left.
func followPass(ctx context.Context, e executor, id string, display progress.Display) (api.JobInfo, error) {
	ticker := time.NewTicker(follow.DefaultInterval)
	defer ticker.Stop()
	for {
		var jobs []api.JobInfo
		if err := e.Execute(ctx, "query-jobs", nil, &jobs); err != nil {
			return api.JobInfo{}, err
		}
		found := false
		for _, j := range jobs {
			if j.ID != id || j.UnverifiedBytes == nil {
				continue
			}
			if *j.UnverifiedBytes == 0 {
				return j, nil
			}
			found = true
			shown := j
			shown.CurrentProgress, shown.TotalProgress = qmp.Or(j.VerifiedBytes, 0), qmp.Or(j.VerifiedBytes, 0)+*j.UnverifiedBytes
			display.Progressed(follow.Sample{Time: time.Now(), Job: shown})
		}
		if !found {
			return api.JobInfo{}, fmt.Errorf("it ended before all was compared")
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return api.JobInfo{}, context.Cause(ctx)
		}
	}
}
