// SPDX-License-Identifier: Apache-2.0

package follow

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/blkmirror/blkmirror/qmp/api"
	"github.com/blkmirror/blkmirror/qmp/client"
)

// DefaultInterval is how often a job is asked how far it is.
const DefaultInterval = 250 * time.Millisecond

// Monitor is a connection to a daemon. While a job is followed nobody else
// may take its events. *client.Client is one.
type Monitor interface {
	Execute(ctx context.Context, command string, args, result any) error
	Events() <-chan client.Event
}

// Sample is what a job looked like at some time. When Status has changed
// faster than the job was asked, the numbers are later than the status.
type Sample struct {
	Time time.Time
	Job  api.JobInfo
}

// Observer is told what happens to a job, in order, and never at once.
type Observer interface {
	// Progressed is called for every change of the status, except that the
	// job is gone, and now and then.
	Progressed(s Sample)
	// RequestFailed is called for every failed request of the job.
	RequestFailed(at time.Time, e api.BlockJobErrorEvent)
}

// Goal says when following ends. It always ends when the job does.
type Goal uint8

// The goals.
const (
	UntilEnd     Goal = iota // only then
	UntilReady               // when the job is ready
	UntilPending             // when the job waits for job-finalize
)

// Result is how following ended.
type Result uint8

// The results.
const (
	Ready     Result = iota // the job goes on, as a copy that is kept up to date
	Pending                 // the job waits for job-finalize
	Completed               // the job ended with success
	Failed                  // the job ended with an error
	Cancelled               // the job was cancelled
)

var resultNames = [...]string{"ready", "pending", "completed", "failed", "cancelled"}

func (r Result) String() string { return resultNames[r] }

// Outcome is how following ended, with the last that was seen of the job.
type Outcome struct {
	Result Result
	Error  string // why the job failed
	Last   Sample
}

// ErrNoJob is the error for a job that the daemon does not have.
var ErrNoJob = errors.New("the daemon has no such job")

// errUnseen is the error for a job whose last events were dropped.
var errUnseen = errors.New("the job ended, but how was not seen: events were lost")

// Options are options of Job.
type Options struct {
	Goal     Goal
	Interval time.Duration // between queries; 0 is DefaultInterval
	// Known are the numbers of the job that are known already. They are what
	// is left of it if it is gone before it can be asked.
	Known api.JobInfo
}

// Job follows the job id. An error means that it could not be followed any
// further, and says nothing about the job.
func Job(ctx context.Context, m Monitor, id string, opts Options, observer Observer) (Outcome, error) {
	if opts.Interval == 0 {
		opts.Interval = DefaultInterval
	}
	f := follower{monitor: m, goal: opts.Goal, observer: observer, job: opts.Known}
	f.job.ID = id
	outcome, err := f.follow(ctx, opts.Interval)
	if err != nil {
		return Outcome{Last: f.sample()}, fmt.Errorf("job '%s': %w", id, err)
	}
	return outcome, nil
}

func (f *follower) follow(ctx context.Context, interval time.Duration) (Outcome, error) {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		if err := f.look(ctx); err != nil {
			return Outcome{}, err
		}
		if outcome, ok := f.outcome(); ok {
			return outcome, nil
		}
		if err := f.wait(ctx, ticker.C); err != nil {
			return Outcome{}, err
		}
	}
}

// wait returns when it is time to look again. A job that fails request after
// request is not a reason: there may be thousands of them per second.
func (f *follower) wait(ctx context.Context, tick <-chan time.Time) error {
	for {
		select {
		case e, ok := <-f.monitor.Events():
			// When the connection is over, looking will say why.
			if !ok || f.take(e) {
				return nil
			}
		case <-tick:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// look asks for the job's numbers, and reports everything that is new.
func (f *follower) look(ctx context.Context) error {
	var jobs []api.JobInfo
	err := f.monitor.Execute(ctx, "query-jobs", nil, &jobs)
	moved := f.drain() // even if that failed: the events may tell the end
	listed := false
	for _, info := range jobs {
		if info.ID == f.job.ID {
			f.job, listed = info, true
			if moved {
				f.job.Status = f.last // the list may be older than the events
			} else {
				f.enter(info.Status)
			}
		}
	}
	f.listed = listed
	switch {
	case moved && listed && f.over() && !f.completed && !f.cancelled:
		return f.look(ctx) // only a list made after the end tells how it was
	case f.over() && f.endKnown():
	case err != nil:
		return err
	case f.over() || !listed && f.seen:
		return errUnseen
	case !listed:
		return ErrNoJob
	}
	f.report()
	return nil
}
