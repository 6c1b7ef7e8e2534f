// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/blkmirror/blkmirror/cmd/blkmirror/bytesize"
	"github.com/blkmirror/blkmirror/qmp"
	"github.com/blkmirror/blkmirror/qmp/api"
)

func (c *cli) explainCommand() *cobra.Command {
	watch := time.Second
	cmd := &cobra.Command{
		Use:   "explain JOB",
		Short: "tell what a job waits for, and what can be done about it",
		Long: `Looks at a job twice, a moment apart, and tells in words what it does, what it
waits for, why it does not get done, and which commands would help.`,
		Args: cobra.ExactArgs(1),
	}
	cmd.Flags().DurationVar(&watch, "for", watch, "`TIME` between the two looks")
	cmd.RunE = c.action(func(ctx context.Context, args []string) error {
		if watch < 0 {
			return usage("--for %v is negative", watch)
		}
		return c.with(ctx, func(s *session) error {
			views, err := lookTwice(ctx, s, watch)
			if err != nil {
				return err
			}
			for _, v := range views {
				if v.now.ID == args[0] {
					return c.explain(v)
				}
			}
			return fmt.Errorf("job '%s': the daemon has no such job", args[0])
		})
	})
	return cmd
}

// jobView is a job at two moments.
type jobView struct {
	now, before api.JobInfo
	between     time.Duration     // 0 if it was not there before
	block       *api.BlockJobInfo // nil for a job that is none
}

// lookTwice looks at all jobs, waits, and looks again.
func lookTwice(ctx context.Context, e executor, wait time.Duration) ([]jobView, error) {
	var first, second []api.JobInfo
	if err := e.Execute(ctx, "query-jobs", nil, &first); err != nil {
		return nil, err
	}
	begun := time.Now()
	if len(first) > 0 {
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	if err := e.Execute(ctx, "query-jobs", nil, &second); err != nil {
		return nil, err
	}
	between := time.Since(begun)
	var blocks []api.BlockJobInfo
	if err := e.Execute(ctx, "query-block-jobs", nil, &blocks); err != nil {
		return nil, err
	}
	var views []jobView
	for _, now := range second {
		v := jobView{now: now}
		for _, before := range first {
			if before.ID == now.ID {
				v.before, v.between = before, between
			}
		}
		for i := range blocks {
			if blocks[i].Device == now.ID {
				v.block = &blocks[i]
			}
		}
		views = append(views, v)
	}
	return views, nil
}

// explanation is what there is to say about a job.
type explanation struct {
	facts []string
	help  []help
	stuck bool // it does not get on by itself
}

// help is what an operator can do.
type help struct{ text, command string }

func (e *explanation) say(format string, args ...any) {
	e.facts = append(e.facts, fmt.Sprintf(format, args...))
}

func (e *explanation) offer(text, command string, args ...any) {
	e.help = append(e.help, help{text, fmt.Sprintf("blkmirror "+command, args...)})
}

func (c *cli) explain(v jobView) error {
	e := v.explain()
	if c.json {
		facts, actions := []any{}, []any{}
		for _, f := range e.facts {
			facts = append(facts, f)
		}
		for _, h := range e.help {
			actions = append(actions, qmp.NewObject(qmp.Member{Name: "text", Value: h.text}, qmp.Member{Name: "command", Value: h.command}))
		}
		return c.printJSON(qmp.NewObject(qmp.Member{Name: "job", Value: v.now.ID}, qmp.Member{Name: "status", Value: string(v.now.Status)},
			qmp.Member{Name: "stuck", Value: e.stuck}, qmp.Member{Name: "facts", Value: facts}, qmp.Member{Name: "actions", Value: actions}))
	}
	fmt.Fprintf(c.stdout, "Job '%s' (%s) is %s.\n", v.now.ID, v.now.Type, v.now.Status)
	for _, f := range e.facts {
		fmt.Fprintf(c.stdout, "  %s\n", f)
	}
	if len(e.help) > 0 {
		fmt.Fprintln(c.stdout, "What can be done:")
	}
	for _, h := range e.help {
		fmt.Fprintf(c.stdout, "  %s:\n    %s\n", h.text, h.command)
	}
	return nil
}

// explain puts a job into words.
func (v *jobView) explain() explanation {
	var e explanation
	id := v.now.ID
	switch v.now.Status {
	case api.JobStatusCreated, api.JobStatusUndefined:
		e.say("It is made, and has not begun.")
	case api.JobStatusRunning:
		v.explainRunning(&e)
	case api.JobStatusPaused, api.JobStatusStandby:
		v.explainPaused(&e)
	case api.JobStatusReady:
		v.explainReady(&e)
	case api.JobStatusWaiting:
		e.stuck = true
		e.say("Its work is done; it waits for the other jobs of its transaction.")
	case api.JobStatusPending:
		e.stuck = true
		e.say("Its work is done; it was started with auto-finalize off and waits for the word to end.")
		e.offer("let it end", "job finalize %s", id)
		e.offer("give up what it did", "job cancel %s --force", id)
	case api.JobStatusAborting:
		e.say("It failed or was cancelled, and cleans up.")
	case api.JobStatusConcluded:
		e.stuck = true
		if v.now.Error != nil {
			e.say("It failed: %s.", *v.now.Error)
		} else {
			e.say("It ended with success.")
		}
		e.say("It stays in the list until it is dismissed.")
		e.offer("remove it from the list", "job dismiss %s", id)
	}
	return e
}

// left is how much is to be done, and whether the job counts that.
func left(j api.JobInfo) (int64, bool) {
	if j.DirtyBytes != nil {
		return *j.DirtyBytes, true
	}
	return j.TotalProgress - j.CurrentProgress, j.TotalProgress > 0
}

// done is how much work was done.
func done(j api.JobInfo) int64 {
	if j.CopiedBytes == nil {
		return j.CurrentProgress
	}
	return *j.CopiedBytes + qmp.Or(j.ZeroedBytes, 0) + qmp.Or(j.OffloadedBytes, 0)
}

func (v *jobView) explainRunning(e *explanation) {
	id, mirror := v.now.ID, v.now.Type == api.JobTypeMirror
	todo, counted := left(v.now)
	if !counted {
		e.say("It works; how far it is it does not tell.")
		return
	}
	e.say("%s are left.", bytesize.Format(todo))
	if v.between <= 0 {
		return
	}
	was, _ := left(v.before)
	rate := float64(done(v.now)-done(v.before)) / v.between.Seconds()
	gain := float64(was-todo) / v.between.Seconds()
	limited := v.block != nil && v.block.Speed > 0 && rate >= 0.7*float64(v.block.Speed)
	switch {
	case todo == 0:
		e.say("It flushes the target and will be ready in a moment.")
	case rate == 0 && todo >= was:
		e.stuck = true
		e.say("Nothing was copied in the last %v: the storage of source or target does not answer or is very slow, or its "+
			"requests fail and are tried again, as with on-target-error=ignore.", v.between.Round(time.Millisecond))
		e.offer("look at the images, their locks and their space", "doctor")
		e.offer("see whether requests fail", "events BLOCK_JOB_ERROR BLOCK_NODE_CONNECTION")
	case gain <= 0:
		e.stuck = true
		e.say("It copies %s/s and does not get done: guests write as fast, and what is left grew by %s in %v.", bytesize.Format(int64(rate)),
			bytesize.Format(todo-was), v.between.Round(time.Millisecond))
		if mirror {
			e.offer("let guests' writes wait until the target has them, too", "mirror mode %s write-blocking", id)
		}
	default:
		e.say("It copies %s/s and is done in about %v.", bytesize.Format(int64(rate)), time.Duration(float64(todo)/gain*float64(time.Second)).Round(time.Second))
	}
	if limited {
		e.say("Its limit of %s/s holds it back.", bytesize.Format(v.block.Speed))
		e.offer("take the limit away", "job speed %s 0", id)
	}
	if held, most := qmp.Or(v.now.RateLimit, 0), time.Duration(qmp.Or(v.now.MaxGuestLatency, 0)); held > 0 {
		e.say("It gives way to guests, who wait up to %v for the source and shall not wait longer than %v: %s/s at most for now.",
			time.Duration(qmp.Or(v.now.GuestLatencyNS, 0)).Round(time.Microsecond), most, bytesize.Format(held))
		e.offer("copy as fast as it can", "mirror latency %s 0", id)
	}
	if delay := qmp.Or(v.now.GuestWriteDelayNS, 0); delay > 0 {
		e.say("Each write of a guest takes %v longer because of it.", time.Duration(delay).Round(time.Microsecond))
	}
}

func (v *jobView) explainPaused(e *explanation) {
	id := v.now.ID
	e.stuck = true
	if todo, counted := left(v.now); counted && todo > 0 {
		e.say("%s are left.", bytesize.Format(todo))
	}
	status := api.BlockDeviceIoStatusOk
	if v.block != nil {
		status = v.block.IOStatus
	}
	switch status {
	case api.BlockDeviceIoStatusNospace:
		e.say("It stopped because there is no space left, most likely on the target.")
		e.offer("see how much space there is", "doctor")
		e.offer("once there is space, go on", "job resume %s", id)
	case api.BlockDeviceIoStatusFailed:
		e.say("It stopped because a request failed; BLOCK_JOB_ERROR told which, and the daemon's log may.")
		e.offer("once the cause is gone, go on", "job resume %s", id)
	default:
		e.say("An operator paused it.")
		e.offer("go on", "job resume %s", id)
	}
	e.offer("give up", "job cancel %s --force", id)
}

func (v *jobView) explainReady(e *explanation) {
	id := v.now.ID
	synced := v.block != nil && v.block.Mirror != nil && v.block.Mirror.ActivelySynced
	todo, _ := left(v.now)
	switch {
	case synced:
		e.say("Source and target are equal, and every write goes to both.")
	case todo == 0:
		e.say("Source and target are equal at the moment; writes reach the target some time after the guest was answered.")
	default:
		e.say("The target is %s behind; writes reach it some time after the guest was answered.", bytesize.Format(todo))
	}
	if v.between > 0 {
		if was, _ := left(v.before); todo > was && !synced {
			e.say("Guests write faster than it follows. It can be completed all the same; the last part then holds guests' writes up.")
			e.offer("let guests' writes wait until the target has them, too", "mirror mode %s write-blocking", id)
		}
	}
	if delay := qmp.Or(v.now.GuestWriteDelayNS, 0); delay > 0 {
		e.say("Each write of a guest takes %v longer because of it.", time.Duration(delay).Round(time.Microsecond))
	}
	e.stuck = true
	e.say("It waits for an operator: nothing ends it by itself.")
	e.offer("switch guests over to the target", "mirror complete %s", id)
	e.offer("keep the target as a copy, and stay on the source", "mirror cancel %s", id)
}
