// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/blkmirror/blkmirror/daemon/build"
	"github.com/blkmirror/blkmirror/qmp"
)

// envSocket is where the socket's path comes from without --socket.
const envSocket = "BLKMIRROR_SOCKET"

const rootHelp = `blkmirror talks to a running blkmirrord, or to any other storage daemon that
speaks QMP: it mirrors disks while they are in use, and shows how far that is.

Sizes may be given as 65536, 64K, 64KiB or 1.5G; units are powers of 1024.

A blkmirrord serves any number of clients of one socket. A qemu-storage-daemon
talks to one at a time: a command waits while another one, such as watch or
events, is connected.

` + exitHelp

// cli is one run of the program.
type cli struct {
	stdin          *os.File // nil for none
	stdout, stderr io.Writer
	getenv         func(string) string

	socket   string
	json     bool
	timeout  time.Duration
	patience time.Duration
}

// run carries out a command line, and returns the exit status. The end of ctx
// is an interruption by the user.
func run(ctx context.Context, args []string, stdin *os.File, stdout, stderr io.Writer, getenv func(string) string) int {
	c := &cli{stdin: stdin, stdout: stdout, stderr: stderr, getenv: getenv, patience: defaultPatience}
	root := c.root(getenv(envSocket))
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err != nil {
		c.report(err)
	}
	return exitStatus(err)
}

func (c *cli) root(socket string) *cobra.Command {
	root := &cobra.Command{
		Use:           "blkmirror",
		Short:         "mirror disks that are in use",
		Long:          rootHelp,
		Version:       build.Read().String(),
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.NoArgs,
		RunE:          func(*cobra.Command, []string) error { return usage("no command given") },
	}
	flags := root.PersistentFlags()
	flags.StringVarP(&c.socket, "socket", "s", socket, "`PATH` of the daemon's QMP socket, or tcp:HOST:PORT (default: $"+envSocket+")")
	flags.BoolVar(&c.json, "json", false, "print JSON, for programs")
	flags.DurationVar(&c.timeout, "timeout", 0, "give up after this `TIME`, such as 30s or 5m; a job goes on")
	flags.Lookup("socket").DefValue = "" // not the variable's value
	root.AddCommand(c.statusCommand(), c.nodesCommand(), c.exportsCommand(), c.jobsCommand(), c.mirrorCommand(), c.jobCommand(),
		c.bitmapCommand(), c.exportCommand(), c.createCommand(), c.copyCommand(), c.verifyCommand(), c.explainCommand(), c.doctorCommand(), c.eventsCommand(), c.traceCommand(), c.qmpCommand(), c.tlsCommand())
	c.addCompletions(root)
	return root
}

// group makes a command that only has others below it.
func group(name, short string, commands ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{Use: name, Short: short, Args: cobra.NoArgs}
	cmd.RunE = func(*cobra.Command, []string) error {
		var names []string
		for _, below := range commands {
			names = append(names, below.Name())
		}
		return usage("no command given: use %s %s", name, strings.Join(names, ", "))
	}
	cmd.AddCommand(commands...)
	return cmd
}

// action makes a command of a function.
func (c *cli) action(do func(ctx context.Context, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		ctx := cmd.Context()
		if c.timeout < 0 {
			return usage("--timeout %v is negative", c.timeout)
		}
		if c.timeout > 0 {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeoutCause(ctx, c.timeout, fmt.Errorf("%w of %v", errTimeout, c.timeout))
			defer cancel()
		}
		if err := do(ctx, args); err != nil {
			return ranError{err}
		}
		return nil
	}
}

// say prints a line for people. With --json it prints value instead, in one
// line, unless that is nil.
func (c *cli) say(value any, format string, args ...any) {
	if !c.json {
		fmt.Fprintf(c.stdout, format+"\n", args...)
	} else if value != nil {
		fmt.Fprintf(c.stdout, "%s\n", qmp.Encode(value))
	}
}

// printJSON prints a value over several lines.
func (c *cli) printJSON(value any) error {
	var text bytes.Buffer
	if err := json.Indent(&text, qmp.Encode(value), "", "  "); err != nil {
		return err
	}
	text.WriteByte('\n')
	_, err := text.WriteTo(c.stdout)
	return err
}
