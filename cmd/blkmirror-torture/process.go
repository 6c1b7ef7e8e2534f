// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// memoryLimit is the most address space that a process of ours gets, in bytes: one that leaks shall not take the machine along.
const memoryLimit = 16 << 30

// process is a program that we started.
type process struct {
	cmd    *exec.Cmd
	log    string
	exited chan struct{} // closed when it has ended
}

// launch starts a program in a folder; what it prints goes to the end of a file. Whoever launches a process ends it.
func launch(folder, log string, argv ...string) (*process, error) {
	file, err := os.OpenFile(log, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	if _, err := fmt.Fprintf(file, "---- %s\n", strings.Join(argv, " ")); err != nil {
		return nil, err
	}
	p := &process{cmd: exec.Command(argv[0], argv[1:]...), log: log, exited: make(chan struct{})}
	p.cmd.Dir, p.cmd.Stdout, p.cmd.Stderr = folder, file, file
	// It ends with us, and Ctrl-C is for us.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("cannot start %s: %w", argv[0], err)
	}
	limit := unix.Rlimit{Cur: memoryLimit, Max: memoryLimit}
	_ = unix.Prlimit(p.pid(), unix.RLIMIT_AS, &limit, nil) // it may have ended already
	go func() {
		_ = p.cmd.Wait() // the state says the same
		close(p.exited)
	}()
	return p, nil
}

func (p *process) pid() int { return p.cmd.Process.Pid }

func (p *process) signal(s syscall.Signal) { _ = p.cmd.Process.Signal(s) } // it may have ended just now

// kill ends the process as a power switch would.
func (p *process) kill() {
	p.signal(syscall.SIGKILL)
	<-p.exited
}

func (p *process) alive() bool {
	select {
	case <-p.exited:
		return false
	default:
		return true
	}
}

// wait waits until the process has ended, and returns its exit status; one that does not end says why, and is killed.
func (p *process) wait(ctx context.Context, limit time.Duration) (int, error) {
	timeout := time.NewTimer(limit)
	defer timeout.Stop()
	select {
	case <-p.exited:
		return p.cmd.ProcessState.ExitCode(), nil
	case <-timeout.C:
	case <-ctx.Done():
	}
	p.dump()
	return 0, fmt.Errorf("%s did not end; its goroutines are in %s", p.cmd.Args[0], p.log)
}

// dump has a Go program print its goroutines, and ends it.
func (p *process) dump() {
	p.signal(syscall.SIGCONT)
	p.signal(syscall.SIGQUIT)
	timeout := time.NewTimer(5 * time.Second)
	defer timeout.Stop()
	select {
	case <-p.exited:
	case <-timeout.C:
		p.kill()
	}
}

// sleep waits, or says why not.
func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// until polls until something holds.
func until(ctx context.Context, limit time.Duration, what string, holds func() (bool, error)) error {
	deadline := time.Now().Add(limit)
	for {
		done, err := holds()
		if done || err != nil {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("it did not come about in %v that %s", limit, what)
		}
		if err := sleep(ctx, 2*time.Millisecond); err != nil {
			return fmt.Errorf("while waiting that %s: %w", what, err)
		}
	}
}
