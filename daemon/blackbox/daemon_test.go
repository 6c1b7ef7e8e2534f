// SPDX-License-Identifier: Apache-2.0

package blackbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/blkmirror/blkmirror/block/nbd/nbdguest"
	"github.com/blkmirror/blkmirror/qmp/client"
)

// patience is how long anything may take that should be quick.
const patience = 20 * time.Second

// args are the arguments of a command.
type args map[string]any

// daemon is a running daemon.
type daemon struct {
	t      testing.TB
	dir    string
	pid    int
	exited chan struct{} // closed when the process has ended
	status int           // valid then
	stderr output
	client *client.Client
	events []client.Event // received and not yet waited for
}

// output is what a process prints.
type output struct {
	mu struct {
		sync.Mutex
		bytes.Buffer
	}
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.mu.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.mu.Buffer.String()
}

// folder makes a folder whose name is short enough for sockets.
func folder(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "bb-")
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// start starts a daemon with a monitor and an NBD server, and connects to it.
func start(t testing.TB, options ...string) *daemon {
	t.Helper()
	dir := folder(t)
	d := launch(t, dir, append([]string{"--qmp", filepath.Join(dir, "qmp"),
		"--nbd-server", "addr.type=unix,addr.path=" + filepath.Join(dir, "nbd")}, options...)...)
	d.connect()
	return d
}

// launch starts a daemon with exactly these options. It is told to end when the test does, and must do so in good order.
func launch(t testing.TB, dir string, options ...string) *daemon {
	t.Helper()
	d := &daemon{t: t, dir: dir, exited: make(chan struct{})}
	cmd := exec.Command(program, options...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, &d.stderr, &d.stderr
	// It ends with the tests, even if they are killed. The kernel takes the thread for the parent, so the thread stays.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err != nil {
			return
		}
		_ = cmd.Wait() // the state says the same
		d.status = cmd.ProcessState.ExitCode()
		close(d.exited)
	}()
	must(t, <-started)
	d.pid = cmd.Process.Pid
	t.Cleanup(d.stop)
	return d
}

// connect waits for the monitor's socket.
func (d *daemon) connect() {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(d.t.Context(), patience)
	defer cancel()
	var err error
	eventually(d.t, "the monitor answers", func() bool {
		select {
		case <-d.exited:
			d.t.Fatalf("the daemon ended with status %d: %s", d.status, d.stderr.String())
		default:
		}
		d.client, err = client.Dial(ctx, "unix", d.path("qmp"), client.Options{EventBuffer: 1 << 16})
		return err == nil
	})
}

// stop ends the daemon and looks at how it went.
func (d *daemon) stop() {
	if d.client != nil {
		_ = d.client.Close()
	}
	_ = syscall.Kill(d.pid, syscall.SIGTERM)
	select {
	case <-d.exited:
		if d.status != 0 && !d.t.Failed() {
			d.t.Errorf("the daemon ended with status %d: %s", d.status, d.stderr.String())
		}
	case <-time.After(patience):
		_ = syscall.Kill(d.pid, syscall.SIGQUIT) // prints where it hangs
		<-d.exited
		d.t.Errorf("the daemon did not end: %s", d.stderr.String())
	}
	if text := d.stderr.String(); strings.Contains(text, "panic") || strings.Contains(text, "goroutine ") {
		d.t.Errorf("the daemon said: %s", text)
	}
	if d.t.Failed() {
		d.t.Logf("daemon: %s", d.stderr.String())
	}
}

func (d *daemon) path(name string) string { return filepath.Join(d.dir, name) }

// uri is the address of an export.
func (d *daemon) uri(export string) string {
	return "nbd+unix:///" + export + "?socket=" + d.path("nbd")
}

// try executes a command.
func (d *daemon) try(command string, a args) error {
	d.t.Helper()
	return d.query(command, a, nil)
}

// do executes a command that must succeed.
func (d *daemon) do(command string, a args) {
	d.t.Helper()
	if err := d.try(command, a); err != nil {
		d.t.Fatalf("%s %v: %v", command, a, err)
	}
}

// query executes a command that returns something.
func (d *daemon) query(command string, a args, result any) error {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(d.t.Context(), patience)
	defer cancel()
	var arguments any
	if a != nil {
		arguments = a
	}
	err := d.client.Execute(ctx, command, arguments, result)
	if errors.Is(err, context.DeadlineExceeded) {
		d.t.Fatalf("%s %v: no reply", command, a)
	}
	return err
}

// refused executes a command that must be refused with an error that has all of these words.
func (d *daemon) refused(command string, a args, words ...string) {
	d.t.Helper()
	err := d.try(command, a)
	if err == nil {
		d.t.Errorf("%s %v was not refused", command, a)
		return
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			d.t.Errorf("%s %v: error %q does not name %q", command, a, err, w)
		}
	}
}

// wait waits for an event that has these members; what came before it is dropped.
func (d *daemon) wait(name string, members args) client.Event {
	d.t.Helper()
	timeout := time.After(patience)
	for {
		select {
		case e, open := <-d.client.Events():
			if !open {
				d.t.Fatalf("the connection ended while waiting for %s", name)
			}
			d.events = append(d.events, e)
			if e.Name == name && has(e, members) {
				return e
			}
		case <-timeout:
			d.t.Fatalf("no %s %v; came: %v", name, members, show(d.events))
		}
	}
}

func has(e client.Event, members args) bool {
	for name, want := range members {
		got, _ := e.Data.Get(name)
		if fmt.Sprint(got) != fmt.Sprint(want) {
			return false
		}
	}
	return true
}

func show(events []client.Event) (names []string) {
	for _, e := range events {
		status, _ := e.Data.Get("status")
		names = append(names, fmt.Sprint(e.Name, " ", status))
	}
	return names
}

// disk opens an image as a raw node over a file node, both with names.
func (d *daemon) disk(node, image string, options args) {
	d.t.Helper()
	a := args{"driver": "raw", "node-name": node,
		"file": args{"driver": "file", "node-name": node + "-file", "filename": image}}
	for name, value := range options {
		a[name] = value
	}
	d.do("blockdev-add", a)
}

// export exports a node for writing under its own name.
func (d *daemon) export(node string) {
	d.t.Helper()
	d.do("block-export-add", args{"type": "nbd", "id": "export-" + node, "node-name": node, "writable": true})
}

// guest connects to an export.
func (d *daemon) guest(export string) *nbdguest.Client {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(d.t.Context(), patience)
	defer cancel()
	g, err := nbdguest.Dial(ctx, "unix", d.path("nbd"), export, nbdguest.Options{})
	must(d.t, err)
	d.t.Cleanup(g.Close)
	return g
}

// memory is a line of the daemon's status, in bytes.
func (d *daemon) memory(line string) int64 {
	d.t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", d.pid))
	must(d.t, err)
	for l := range strings.Lines(string(text)) {
		if fields := strings.Fields(l); len(fields) == 3 && fields[0] == line+":" {
			kib, err := strconv.ParseInt(fields[1], 10, 64)
			must(d.t, err)
			return kib << 10
		}
	}
	d.t.Fatalf("no %s in the status of process %d", line, d.pid)
	return 0
}

// alive sees to it that the daemon serves on.
func (d *daemon) alive() {
	d.t.Helper()
	must(d.t, d.query("query-version", nil, nil))
}

// eventually polls until something holds.
func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	again := time.NewTicker(5 * time.Millisecond)
	defer again.Stop()
	for !holds() {
		select {
		case <-again.C:
		case <-deadline.C:
			t.Fatalf("it did not come about that %s", what)
		}
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
