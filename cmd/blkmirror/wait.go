// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/blkmirror/blkmirror/cmd/blkmirror/follow"
	"github.com/blkmirror/blkmirror/cmd/blkmirror/progress"
	"github.com/blkmirror/blkmirror/qmp"
	"github.com/blkmirror/blkmirror/qmp/api"
)

func (c *cli) watchCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "watch JOB",
		Short: "show how far a job is, until it is over",
		Long: `Shows how far a job is, until it is over. The exit status says how it ended.

On a terminal that is a bar, elsewhere a line per second and per change of the
job's state. With --json lines are objects as query-jobs has them, and the last
one has a member "outcome".`,
		Args: cobra.ExactArgs(1),
		RunE: c.action(func(ctx context.Context, args []string) error {
			return c.with(ctx, func(s *session) error {
				return c.wait(ctx, s, args[0], follow.Options{Goal: follow.UntilEnd})
			})
		}),
	}
}

// wait shows a job until it has come far enough.
func (c *cli) wait(ctx context.Context, s *session, id string, opts follow.Options) error {
	return c.show(ctx, s, id, func(d progress.Display) (follow.Outcome, error) {
		return follow.Job(ctx, s, id, opts, d)
	})
}

// endAndWait executes a command that ends a job, and shows the job until it
// has ended. It may be gone before it can be asked, so that is done before.
func (c *cli) endAndWait(ctx context.Context, s *session, id, command string, arguments any) error {
	opts := follow.Options{Goal: follow.UntilPending}
	var jobs []api.JobInfo
	if err := s.Execute(ctx, "query-jobs", nil, &jobs); err != nil {
		return err
	}
	for _, job := range jobs {
		if job.ID == id {
			opts.Known = job
		}
	}
	if err := s.Execute(ctx, command, arguments, nil); err != nil {
		return refused(id, err)
	}
	return c.wait(ctx, s, id, opts)
}

// show runs something that follows a job, with a display, and says how it
// ended.
func (c *cli) show(ctx context.Context, s *session, id string, run func(progress.Display) (follow.Outcome, error)) error {
	display := c.display()
	outcome, err := run(display)
	if closed := display.Close(); err == nil {
		err = closed
	}
	if errors.Is(err, errInterrupted) || errors.Is(err, errTimeout) {
		return fmt.Errorf("%w: the job goes on; see it with: blkmirror -s %s job watch %s", err, s.socket, id)
	}
	if err != nil {
		return err
	}
	c.sayOutcome(id, outcome)
	if outcome.Result == follow.Failed || outcome.Result == follow.Cancelled {
		return &jobError{id, outcome}
	}
	return nil
}

// outcomeTexts say how a job came where it was to come. The end that is an
// error is told as one.
var outcomeTexts = map[follow.Result]string{
	follow.Ready:     "is ready: the target is in step",
	follow.Pending:   "is pending: it waits for finalize",
	follow.Completed: "is completed",
}

func (c *cli) sayOutcome(id string, o follow.Outcome) {
	if c.json {
		object := qmp.NewObject(qmp.Member{Name: "job", Value: id}, qmp.Member{Name: "outcome", Value: o.Result.String()})
		if o.Error != "" {
			object.Set("error", o.Error)
		}
		object.Set("last", &o.Last.Job)
		c.say(object, "")
		return
	}
	text, ok := outcomeTexts[o.Result]
	if !ok {
		return
	}
	if work := progress.Work(o.Last.Job.JobWork); work != "" {
		text += " (" + work + ")"
	}
	c.say(nil, "job '%s' %s", id, text)
	if d := o.Last.Job.Digest; d != nil {
		c.say(nil, "digest of both disks: %s", *d)
	} else if why := o.Last.Job.DigestMissing; why != nil {
		c.say(nil, "no digest: %s", *why)
	}
}
