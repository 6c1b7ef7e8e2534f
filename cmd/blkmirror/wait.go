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
				return c.wait(ctx, s, args[0], follow.UntilEnd)
			})
		}),
	}
}

// wait shows a job until it has come far enough.
func (c *cli) wait(ctx context.Context, s *session, id string, goal follow.Goal) error {
	return c.show(ctx, s, id, func(d progress.Display) (follow.Outcome, error) {
		return follow.Job(ctx, s, id, follow.Options{Goal: goal}, d)
	})
}

// show runs something that follows a job, with a display, and says how it
// ended.
func (c *cli) show(ctx context.Context, s *session, id string, run func(progress.Display) (follow.Outcome, error)) error {
	var display progress.Display
	if c.json {
		display = progress.NewJSON(c.stdout)
	} else {
		display = progress.New(c.stdout)
	}
	outcome, err := run(display)
	if closed := display.Close(); err == nil {
		err = closed
	}
	if errors.Is(err, errInterrupted) || errors.Is(err, errTimeout) {
		return fmt.Errorf("%w: the job goes on; see it with: blkmirror -s %s watch %s", err, s.socket, id)
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
}
