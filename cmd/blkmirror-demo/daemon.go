// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/blkmirror/blkmirror/qmp/client"
)

// Names in the daemon.
const (
	sourceNode = "source"
	targetNode = "target"
	exportName = "disk"
)

// paths are the files of a demonstration, in a folder of its own.
type paths struct{ source, target, qmp, nbd, log string }

func pathsIn(folder string) paths {
	in := func(name string) string { return filepath.Join(folder, name) }
	return paths{in("source.img"), in("target.img"), in("qmp.sock"), in("nbd.sock"), in("daemon.log")}
}

// arguments are those of a daemon that exports the source, and has the target
// at hand.
func (p paths) arguments() []string {
	node := func(name, path string) string {
		// A comma in a value is doubled.
		return fmt.Sprintf("driver=file,node-name=%s,filename=%s,discard=unmap", name, strings.ReplaceAll(path, ",", ",,"))
	}
	return []string{
		"--blockdev", node(sourceNode, p.source),
		"--blockdev", node(targetNode, p.target),
		"--nbd-server", "addr.type=unix,addr.path=" + strings.ReplaceAll(p.nbd, ",", ",,"),
		"--export", "nbd,id=guest,node-name=" + sourceNode + ",name=" + exportName + ",writable=on",
		"--qmp", p.qmp,
	}
}

// process is a running daemon.
type process struct {
	cmd    *exec.Cmd
	log    string
	exited chan struct{}
	err    error // how it ended; valid once exited is closed
}

// startDaemon starts the daemon. At the end of ctx it is told to end, and
// killed if it does not within a few seconds.
func startDaemon(ctx context.Context, program string, p paths) (*process, error) {
	log, err := os.Create(p.log)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	d := &process{cmd: exec.CommandContext(ctx, program, p.arguments()...), log: p.log, exited: make(chan struct{})}
	d.cmd.Stdout, d.cmd.Stderr = log, log
	d.cmd.Cancel = func() error { return d.cmd.Process.Signal(syscall.SIGTERM) }
	d.cmd.WaitDelay = 5 * time.Second
	// Ctrl-C is for us: we end the daemon when the guest has stopped.
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := d.cmd.Start(); err != nil {
		return nil, fmt.Errorf("cannot start the daemon: %w", err)
	}
	go func() {
		d.err = d.cmd.Wait()
		close(d.exited)
	}()
	return d, nil
}

// connect connects to the daemon's monitor as soon as that is there.
func (d *process) connect(ctx context.Context, socket string) (*client.Client, error) {
	for {
		c, err := client.Dial(ctx, "unix", socket, client.Options{})
		if err == nil {
			return c, nil
		}
		// Until the socket is bound, and then until it is listened on.
		if !errors.Is(err, syscall.ENOENT) && !errors.Is(err, syscall.ECONNREFUSED) {
			return nil, err
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-d.exited:
			return nil, d.died()
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// died is the error for a daemon that has ended before it should.
func (d *process) died() error {
	text, err := os.ReadFile(d.log)
	if err != nil {
		text = []byte(err.Error())
	}
	return fmt.Errorf("the daemon ended: %v; it said: %s", d.err, strings.TrimSpace(string(text)))
}
