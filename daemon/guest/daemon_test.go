// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"context"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/blkmirror/blkmirror/qmp/client"
)

// patience is how long a daemon may take to end.
const patience = 20 * time.Second

// args are the arguments of a command.
type args map[string]any

// daemon is a running daemon with a monitor and an NBD server.
type daemon struct {
	t       testing.TB
	dir     string
	until   time.Time // when all must be over
	process *process
	client  *client.Client
}

// start starts a daemon whose sockets are in a folder of its own.
func start(t testing.TB, until time.Time, program, dir string) *daemon {
	t.Helper()
	d := &daemon{t: t, dir: dir, until: until}
	cmd := exec.Command(program, "--qmp", d.socket("qmp"), "--nbd-server", "addr.type=unix,addr.path="+d.socket("nbd"))
	d.process = launch(t, cmd, func() {})
	t.Cleanup(d.stop)
	ctx, cancel := context.WithDeadline(t.Context(), until)
	defer cancel()
	again := time.NewTicker(5 * time.Millisecond)
	defer again.Stop()
	for {
		var err error
		if d.client, err = client.Dial(ctx, "unix", d.socket("qmp"), client.Options{EventBuffer: 1 << 12}); err == nil {
			return d
		}
		select {
		case <-again.C:
		case <-d.process.ended:
			t.Fatalf("the daemon ended: %s", d.process.said())
		case <-ctx.Done():
			t.Fatalf("the daemon does not answer: %v", err)
		}
	}
}

// stop ends the daemon, which must go in good order. Only the first call counts.
func (d *daemon) stop() {
	if d.client != nil {
		_ = d.client.Close()
		d.client = nil
	}
	if d.process.signal(syscall.SIGTERM) != nil {
		return // it has ended
	}
	hanging := time.AfterFunc(patience, func() { _ = d.process.signal(syscall.SIGQUIT) }) // prints where it hangs
	defer hanging.Stop()
	if status := d.process.wait(); status != 0 {
		d.t.Errorf("the daemon ended with status %d: %s", status, d.process.said())
	}
}

func (d *daemon) socket(name string) string { return filepath.Join(d.dir, name) }

// do executes a command that must succeed.
func (d *daemon) do(command string, a args) {
	d.t.Helper()
	ctx, cancel := context.WithDeadline(d.t.Context(), d.until)
	defer cancel()
	if err := d.client.Execute(ctx, command, a, nil); err != nil {
		d.t.Fatalf("%s %v: %v", command, a, err)
	}
}

// wait waits for an event of the mirror; an error in it ends the test.
func (d *daemon) wait(name string) {
	d.t.Helper()
	timeout := time.After(time.Until(d.until))
	for {
		select {
		case e, open := <-d.client.Events():
			if !open {
				d.t.Fatalf("the connection ended while waiting for %s", name)
			}
			if fault, failed := e.Data.Get("error"); failed {
				d.t.Fatalf("%s: %v", e.Name, fault)
			}
			if e.Name == name {
				return
			}
		case <-timeout:
			d.t.Fatalf("no %s", name)
		}
	}
}

// disk opens an image as a node.
func (d *daemon) disk(node, image string) {
	d.t.Helper()
	d.do("blockdev-add", args{"driver": "raw", "node-name": node, "discard": "unmap",
		"file": args{"driver": "file", "filename": image}})
}

// export exports a node for writing.
func (d *daemon) export(node, name string) {
	d.t.Helper()
	d.do("block-export-add", args{"type": "nbd", "id": "export", "node-name": node, "name": name, "writable": true})
}

// stats are what a node was asked for, as far as it matters.
type stats struct {
	Flushes  int64 `json:"flush_operations"`
	Discards int64 `json:"unmap_operations"`
}

func (d *daemon) stats(node string) stats {
	d.t.Helper()
	ctx, cancel := context.WithDeadline(d.t.Context(), d.until)
	defer cancel()
	var list []struct {
		Node  string `json:"node-name"`
		Stats stats
	}
	must(d.t, d.client.Execute(ctx, "query-blockstats", args{"query-nodes": true}, &list))
	for _, n := range list {
		if n.Node == node {
			return n.Stats
		}
	}
	d.t.Fatalf("no node %s", node)
	return stats{}
}
