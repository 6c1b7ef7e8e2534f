// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"github.com/blkmirror/blkmirror/cmd/blkmirror/bytesize"
	"github.com/blkmirror/blkmirror/cmd/blkmirror/follow"
	"github.com/blkmirror/blkmirror/qmp/api"
)

// jobCommand has the commands for one job of any kind.
func (c *cli) jobCommand() *cobra.Command {
	return group("job", "watch and steer a job of any kind", c.verbCommands()...)
}

// verbCommands are the commands that do something to one job.
func (c *cli) verbCommands() []*cobra.Command {
	return []*cobra.Command{
		c.watchCommand(),
		c.completeCommand(),
		c.cancelCommand(),
		c.verb("pause", "pause a job", "is paused",
			func(id string) (string, any) { return "job-pause", &api.JobPauseArguments{ID: id} }),
		c.verb("resume", "resume a job that is paused", "is resumed",
			func(id string) (string, any) { return "job-resume", &api.JobResumeArguments{ID: id} }),
		c.verb("finalize", "let a job that is pending end", "is finalized",
			func(id string) (string, any) { return "job-finalize", &api.JobFinalizeArguments{ID: id} }),
		c.verb("dismiss", "remove a job that is concluded", "is dismissed",
			func(id string) (string, any) { return "job-dismiss", &api.JobDismissArguments{ID: id} }),
		c.speedCommand(),
	}
}

// verb makes a command that is over when the daemon has answered.
func (c *cli) verb(name, short, done string, request func(id string) (command string, arguments any)) *cobra.Command {
	return &cobra.Command{
		Use: name + " JOB", Short: short, Args: cobra.ExactArgs(1),
		RunE: c.action(func(ctx context.Context, args []string) error {
			id := args[0]
			return c.with(ctx, func(s *session) error {
				command, arguments := request(id)
				if err := s.Execute(ctx, command, arguments, nil); err != nil {
					return refused(id, err)
				}
				c.say(jobObject(id), "job '%s' %s", id, done)
				return nil
			})
		}),
	}
}

func (c *cli) completeCommand() *cobra.Command {
	wait := false
	cmd := &cobra.Command{
		Use:   "complete JOB",
		Short: "let a mirror that is ready switch to its target",
		Args:  cobra.ExactArgs(1),
	}
	cmd.Flags().BoolVar(&wait, "wait", false, "show progress until the job is over, or waits for finalize")
	cmd.RunE = c.action(func(ctx context.Context, args []string) error {
		id := args[0]
		return c.with(ctx, func(s *session) error {
			arguments := &api.JobCompleteArguments{ID: id}
			if wait {
				return c.endAndWait(ctx, s, id, "job-complete", arguments)
			}
			if err := s.Execute(ctx, "job-complete", arguments, nil); err != nil {
				return refused(id, err)
			}
			c.say(jobObject(id), "job '%s' is about to complete", id)
			return nil
		})
	})
	return cmd
}

func (c *cli) cancelCommand() *cobra.Command {
	force, wait := false, false
	cmd := &cobra.Command{
		Use:   "cancel JOB",
		Short: "end a job without a switch to its target",
		Long: `Ends a job without a switch to its target.

A mirror that is ready ends with success then, and leaves a complete copy of
the disk, unless --force is given: then, and before it is ready, the target is
left as it is. With --wait the exit status is 0 in both cases.`,
		Args: cobra.ExactArgs(1),
	}
	cmd.Flags().BoolVar(&force, "force", false, "end it at once, even if it is paused")
	cmd.Flags().BoolVar(&wait, "wait", false, "show progress until the job is over, or waits for finalize")
	cmd.RunE = c.action(func(ctx context.Context, args []string) error {
		id := args[0]
		return c.with(ctx, func(s *session) error {
			// job-cancel is by force always.
			command, arguments := "block-job-cancel", any(&api.BlockJobCancelArguments{Device: id})
			if force {
				command, arguments = "job-cancel", &api.JobCancelArguments{ID: id}
			}
			if !wait {
				if err := s.Execute(ctx, command, arguments, nil); err != nil {
					return refused(id, err)
				}
				c.say(jobObject(id), "job '%s' is about to end", id)
				return nil
			}
			err := c.endAndWait(ctx, s, id, command, arguments)
			if e, ok := errors.AsType[*jobError](err); ok && e.outcome.Result == follow.Cancelled {
				c.say(nil, "job '%s' is cancelled", id)
				return nil // as was asked for
			}
			return err
		})
	})
	return cmd
}

func (c *cli) speedCommand() *cobra.Command {
	return &cobra.Command{
		Use: "speed JOB BYTES", Short: "limit a job to this many bytes per second; 0 is no limit", Args: cobra.ExactArgs(2),
		RunE: c.action(func(ctx context.Context, args []string) error {
			id := args[0]
			speed, err := bytesize.Parse(args[1])
			if err != nil {
				return usage("%v", err)
			}
			return c.with(ctx, func(s *session) error {
				err := s.Execute(ctx, "block-job-set-speed", &api.BlockJobSetSpeedArguments{Device: id, Speed: speed}, nil)
				if err != nil {
					return refused(id, err)
				}
				limit := "has no limit"
				if speed > 0 {
					limit = "is limited to " + bytesize.Format(speed) + "/s"
				}
				c.say(jobObject(id), "job '%s' %s", id, limit)
				return nil
			})
		}),
	}
}
