// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// doDaemon starts the daemon and connects the main monitor. With "raw" that
// stays in negotiation mode.
func doDaemon(ctx context.Context, r *run, rest string) ([]Outcome, error) {
	arguments, err := SplitCommand(rest)
	if err != nil {
		return nil, err
	}
	how := mainMonitor
	if len(arguments) > 0 && arguments[0] == "raw" {
		how, arguments = mainMonitor+" raw", arguments[1:]
	}
	if err := r.start(arguments); err != nil {
		return nil, err
	}
	return doConnect(ctx, r, how)
}

func (r *run) start(arguments []string) error {
	if r.daemon != nil {
		return errors.New("there is a daemon already")
	}
	output, err := os.Create(r.path("stderr"))
	if err != nil {
		return err
	}
	defer output.Close()
	command := slices.Concat(r.options.Daemon, arguments, []string{
		"--chardev", fmt.Sprintf("socket,id=qmp0,path=%s,server=on,wait=off", r.path("main.qmp")),
		"--monitor", "chardev=qmp0",
	})
	r.daemon, err = startProcess(command, output)
	return err
}

// doDaemonExits starts a daemon that must end by itself, and notes whether it
// said anything.
func doDaemonExits(ctx context.Context, r *run, rest string) ([]Outcome, error) {
	arguments, err := SplitCommand(rest)
	if err != nil {
		return nil, err
	}
	if err := r.start(arguments); err != nil {
		return nil, err
	}
	status, manner := r.exitStatus(ctx), "with a message"
	if r.stderr() == "" {
		manner = "silently"
	}
	if !r.daemon.running() {
		r.daemon = nil // the scenario may start another one
	}
	return []Outcome{words("daemon exit status %s %s", status, manner)}, nil
}

// doConnect opens one more monitor; with "raw" it stays in negotiation mode.
func doConnect(ctx context.Context, r *run, rest string) ([]Outcome, error) {
	args, err := atLeast(1, rest, "connect NAME [raw] [SOCKET]")
	if err != nil {
		return nil, err
	}
	name, socket, raw := args[0], "main.qmp", false
	for _, word := range args[1:] {
		if word == "raw" {
			raw = true
		} else {
			socket = word
		}
	}
	if r.daemon == nil {
		return nil, errors.New("no daemon to connect to")
	}
	if r.monitor(name) != nil {
		return nil, fmt.Errorf("monitor %q is connected already", name)
	}
	conn, err := r.waitForSocket(ctx, r.path(socket))
	if err != nil {
		return nil, err
	}
	m := newMonitor(name, conn, r.options.Patience)
	r.monitors = append(r.monitors, m)
	if raw {
		return nil, nil
	}
	return nil, m.negotiate(ctx)
}

func doDisconnect(_ context.Context, r *run, name string) ([]Outcome, error) {
	m := r.monitor(name)
	if m == nil {
		return nil, fmt.Errorf("no monitor %q", name)
	}
	m.close()
	r.monitors = slices.DeleteFunc(r.monitors, func(other *monitor) bool { return other == m })
	return nil, nil
}

// doQuit sends quit, and shows the reply, the events that follow, and the
// exit status.
func doQuit(ctx context.Context, r *run, _ string) ([]Outcome, error) {
	m := r.monitor(mainMonitor)
	if m == nil {
		return nil, errors.New("no main monitor to quit with")
	}
	reply, err := m.command(ctx, "quit", nil)
	if err != nil {
		return nil, err
	}
	lines, err := r.showReply(reply, Filters{})
	if err != nil {
		return nil, err
	}
	for {
		event, err := m.event(ctx)
		if err != nil { // mostly: the monitor closed; the exit status tells if not
			return append(lines, words("daemon exit status %s", r.exitStatus(ctx))), nil
		}
		lines = append(lines, r.showEvent(event))
	}
}

func doKill(ctx context.Context, r *run, name string) ([]Outcome, error) {
	signal := unix.SignalNum(name)
	if signal == 0 || r.daemon == nil {
		return nil, fmt.Errorf("no signal %q, or no daemon", name)
	}
	if err := r.daemon.os.Signal(signal); err != nil {
		return nil, err
	}
	return []Outcome{words("daemon exit status %s", r.exitStatus(ctx))}, nil
}

func doPidfile(_ context.Context, r *run, name string) ([]Outcome, error) {
	text, err := os.ReadFile(r.path(name))
	if err != nil {
		return nil, err
	}
	verdict := "wrong"
	if pid, err := strconv.Atoi(strings.TrimSpace(string(text))); err == nil && r.daemon != nil && pid == r.daemon.os.Pid {
		verdict = "ok"
	}
	return []Outcome{words("pidfile %s %s", name, verdict)}, nil
}

// doSleep lets the daemon and the guests work for a while.
func doSleep(ctx context.Context, _ *run, rest string) ([]Outcome, error) {
	seconds, err := strconv.ParseFloat(rest, 64)
	if err != nil {
		return nil, err
	}
	return nil, pause(ctx, time.Duration(seconds*float64(time.Second)))
}

func pause(ctx context.Context, length time.Duration) error {
	timer := time.NewTimer(length)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
