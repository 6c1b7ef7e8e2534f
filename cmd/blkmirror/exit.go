// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/blkmirror/blkmirror/cmd/blkmirror/follow"
	"github.com/blkmirror/blkmirror/cmd/blkmirror/internal/engine"
	"github.com/blkmirror/blkmirror/qmp"
)

// Exit statuses. Scripts rely on them.
const (
	exitOK           = 0
	exitFailed       = 1
	exitUsage        = 2
	exitNoConnection = 3
	exitCancelled    = 4
	exitTimeout      = 5
	exitChecks       = 6
	exitDiffers      = 7
	exitInterrupted  = 130 // as a shell shows a process that SIGINT ended
)

const exitHelp = `Exit status:
    0  done
    1  the daemon refused the command, or the job failed
    2  wrong usage
    3  no connection to the daemon, or it was lost
    4  the job was cancelled
    5  not done within --timeout
    6  checks found a problem; nothing was changed
    7  the images differ
  130  interrupted by SIGINT or SIGTERM`

var (
	errInterrupted = errors.New("interrupted")
	errTimeout     = errors.New("not done within the timeout")
)

// usageError is a mistake on the command line that only the command itself
// could find.
type usageError struct{ text string }

func (e *usageError) Error() string { return e.text }

func usage(format string, args ...any) error { return &usageError{fmt.Sprintf(format, args...)} }

// connectionError means that the daemon cannot be talked to, any more.
type connectionError struct {
	socket string
	err    error
}

func (e *connectionError) Error() string {
	return fmt.Sprintf("no connection to the daemon at '%s': %v", e.socket, e.err)
}

func (e *connectionError) Unwrap() error { return e.err }

// jobError is the end of a job that was not what was asked for.
type jobError struct {
	job     string
	outcome follow.Outcome
}

func (e *jobError) Error() string {
	if e.outcome.Result == follow.Cancelled {
		return fmt.Sprintf("job '%s' was cancelled", e.job)
	}
	return fmt.Sprintf("job '%s' failed: %s", e.job, e.outcome.Error)
}

// checksError means that checks found problems.
type checksError struct {
	what     string
	problems int
	details  string // one line each, unless they are told already
}

func (e *checksError) Error() string { return e.what + ": " + count(e.problems, "problem") + e.details }

// ranError marks the error of a command that began to run: any other comes
// from the command line.
type ranError struct{ error }

func (e ranError) Unwrap() error { return e.error }

// exitStatus returns the status that an error stands for.
func exitStatus(err error) int {
	if err == nil {
		return exitOK
	}
	if _, ok := errors.AsType[*usageError](err); ok {
		return exitUsage
	}
	if _, ok := errors.AsType[ranError](err); !ok {
		return exitUsage
	}
	switch {
	case errors.Is(err, errTimeout):
		return exitTimeout
	case errors.Is(err, errInterrupted), errors.Is(err, context.Canceled):
		return exitInterrupted
	}
	if _, ok := errors.AsType[*connectionError](err); ok {
		return exitNoConnection
	}
	if _, ok := errors.AsType[*engine.Difference](err); ok {
		return exitDiffers
	}
	if _, ok := errors.AsType[*differenceError](err); ok {
		return exitDiffers
	}
	if _, ok := errors.AsType[*checksError](err); ok {
		return exitChecks
	}
	if e, ok := errors.AsType[*jobError](err); ok && e.outcome.Result == follow.Cancelled {
		return exitCancelled
	}
	return exitFailed
}

// report prints an error.
func (c *cli) report(err error) {
	status := exitStatus(err)
	if c.json {
		body := qmp.NewObject(qmp.Member{Name: "desc", Value: err.Error()}, qmp.Member{Name: "exit-status", Value: status})
		if refused, ok := errors.AsType[*qmp.Error](err); ok {
			body.Set("class", string(refused.Class))
		}
		fmt.Fprintf(c.stderr, "%s\n", qmp.Encode(qmp.NewObject(qmp.Member{Name: "error", Value: body})))
		return
	}
	fmt.Fprintf(c.stderr, "blkmirror: %v\n", err)
	if status == exitUsage {
		fmt.Fprintln(c.stderr, "See blkmirror --help.")
	}
}

// refused names the job in what the daemon said: "Job not found" does not.
func refused(id string, err error) error {
	if e, ok := errors.AsType[*qmp.Error](err); ok && !strings.Contains(e.Desc, "'"+id+"'") {
		return fmt.Errorf("job '%s': %w", id, err)
	}
	return err
}
