// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

// process is a program that we started and that ends before we do.
type process struct {
	cmd     *exec.Cmd
	started time.Time
	log     string
	exited  chan struct{}
	err     error // how it ended; valid once exited is closed
}

// startProcess starts a program whose output goes to a file. If ctx ends it is told to end, too, and killed if it does not
// within a few seconds.
func startProcess(ctx context.Context, argv []string, log string) (*process, error) {
	file, err := os.Create(log)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	p := &process{cmd: exec.CommandContext(ctx, argv[0], argv[1:]...), log: log, exited: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = file, file
	p.cmd.Cancel = func() error { return p.cmd.Process.Signal(syscall.SIGTERM) }
	p.cmd.WaitDelay = 3 * time.Second
	// Ctrl-C is for us.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	p.started = time.Now()
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("cannot start %s: %w", argv[0], err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.exited)
	}()
	return p, nil
}

func (p *process) pid() int { return p.cmd.Process.Pid }

// died is the error for a program that has ended before it should.
func (p *process) died() error {
	text, err := os.ReadFile(p.log)
	if err != nil {
		text = []byte(err.Error())
	}
	return fmt.Errorf("it ended: %v; it said: %s", p.err, strings.TrimSpace(string(text[max(0, len(text)-400):])))
}

// wait waits until the program has ended, and helps if it does not.
func (p *process) wait(ctx context.Context) error {
	for _, help := range []struct {
		signal syscall.Signal
		after  time.Duration
	}{{syscall.SIGTERM, 10 * time.Second}, {syscall.SIGKILL, 5 * time.Second}} {
		select {
		case <-p.exited:
			return nil
		case <-ctx.Done():
		case <-time.After(help.after):
		}
		select {
		case <-p.exited:
			return nil
		default:
			_ = p.cmd.Process.Signal(help.signal) // it may have ended just now
		}
		if ctx.Err() != nil {
			break // killing is up to the command's WaitDelay
		}
	}
	<-p.exited
	return errors.New("it did not end by itself")
}

// dial connects to a Unix socket as soon as the program listens there.
func (p *process) dial(ctx context.Context, socket string) (net.Conn, error) {
	const pause = 200 * time.Microsecond
	var d net.Dialer
	for {
		c, err := d.DialContext(ctx, "unix", socket)
		if err == nil {
			return c, nil
		}
		// Until the socket is bound, and then until it is listened on.
		if !errors.Is(err, syscall.ENOENT) && !errors.Is(err, syscall.ECONNREFUSED) {
			return nil, err
		}
		select {
		case <-time.After(pause):
		case <-p.exited:
			return nil, p.died()
		case <-ctx.Done():
			return nil, fmt.Errorf("no answer at %s: %w", filepath.Base(socket), context.Cause(ctx))
		}
	}
}

// output runs a program to its end, and returns what it wrote to standard output.
func output(ctx context.Context, program string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.WaitDelay = 3 * time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return stdout.String(), fmt.Errorf("%s %s: %w: %s", program, strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

// serial numbers sockets and logs.
var serial atomic.Int64

func (b *bench) scratch(ending string) string {
	return filepath.Join(b.dir, fmt.Sprintf("%d.%s", serial.Add(1), ending))
}
