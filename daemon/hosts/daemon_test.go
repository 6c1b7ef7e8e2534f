// SPDX-License-Identifier: Apache-2.0

package hosts

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/blkmirror/blkmirror/block/nbd/nbdguest"
	"github.com/blkmirror/blkmirror/qmp/client"
)

// patience is how long anything may take that should be quick.
const patience = 20 * time.Second

// args are the arguments of a command.
type args map[string]any

// daemon is a daemon on one of the hosts.
type daemon struct {
	t      *testing.T
	host   *host
	dir    string
	pid    int
	exited chan struct{} // closed when the process has ended
	status int           // valid then
	killed bool
	stderr output
	client *client.Client
	events []client.Event // all that were received
	passed int            // how many of them were waited for, or passed over
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

// start starts a daemon with a monitor on a host. It is told to end when the test does, and must do so in good order.
func start(t *testing.T, h *host, dir string, options ...string) *daemon {
	t.Helper()
	d := &daemon{t: t, host: h, dir: dir, exited: make(chan struct{})}
	cmd := exec.Command(program, append([]string{"--qmp", d.path("qmp")}, options...)...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, &d.stderr, &d.stderr
	// It ends with the tests, even if they are killed. The kernel takes the thread for the parent, so the thread stays.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked
		err := unix.Setns(int(h.ns.Fd()), unix.CLONE_NEWNET)
		if err == nil {
			err = cmd.Start()
		}
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
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	eventually(t, "the monitor answers", patience, func() bool {
		select {
		case <-d.exited:
			t.Fatalf("the daemon ended with status %d: %s", d.status, d.stderr.String())
		default:
		}
		c, err := client.Dial(ctx, "unix", d.path("qmp"), client.Options{EventBuffer: 1 << 16})
		d.client = c
		return err == nil
	})
	return d
}

// kill ends the daemon as a power switch would.
func (d *daemon) kill() {
	d.killed = true
	_ = syscall.Kill(d.pid, syscall.SIGKILL)
	<-d.exited
	_ = d.client.Close()
}

// stop ends the daemon and looks at how it went.
func (d *daemon) stop() {
	if d.client != nil {
		_ = d.client.Close()
	}
	if d.killed {
		return
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
	if text := d.stderr.String(); strings.Contains(text, "panic") || strings.Contains(text, "goroutine ") || d.t.Failed() {
		d.t.Errorf("the daemon in %s said: %s", d.dir, text)
	}
}

func (d *daemon) path(name string) string { return filepath.Join(d.dir, name) }

// do executes a command that must succeed, and returns how long it took.
func (d *daemon) do(command string, a args) time.Duration {
	d.t.Helper()
	began := time.Now()
	if err := d.query(command, a, nil); err != nil {
		d.t.Fatalf("%s %v: %v", command, a, err)
	}
	return time.Since(began)
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

// wait waits for an event that has these members; what came before it is passed over.
func (d *daemon) wait(name string, members args) client.Event {
	return d.waitFor(patience, name, members)
}

func (d *daemon) waitFor(limit time.Duration, name string, members args) client.Event {
	d.t.Helper()
	timeout := time.After(limit)
	for {
		for d.passed < len(d.events) {
			e := d.events[d.passed]
			d.passed++
			if e.Name == name && has(e, members) {
				return e
			}
		}
		select {
		case e, open := <-d.client.Events():
			if !open {
				d.t.Fatalf("the connection ended while waiting for %s", name)
			}
			d.events = append(d.events, e)
		case <-timeout:
			d.t.Fatalf("no %s %v within %v; came:\n%s", name, members, limit, show(d.events))
		}
	}
}

// told counts the events of a name that were received so far.
func (d *daemon) told(name string, members args) (n int) {
	for {
		select {
		case e := <-d.client.Events():
			d.events = append(d.events, e)
			continue
		default:
		}
		break
	}
	for _, e := range d.events {
		if e.Name == name && has(e, members) {
			n++
		}
	}
	return n
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

// show gives events in the order in which they came, a line each.
func show(events []client.Event) string {
	var text strings.Builder
	for _, e := range events {
		fmt.Fprintf(&text, "  %s %s", e.Time.Format("05.000"), e.Name)
		for _, member := range []string{"status", "state", "reason", "node-name", "operation", "action", "offset", "length", "errno",
			"copy-mode", "error"} {
			if v, there := e.Data.Get(member); there {
				fmt.Fprintf(&text, " %s=%v", member, v)
			}
		}
		text.WriteByte('\n')
	}
	return text.String()
}

// guest connects to an export by the daemon's unix socket.
func (d *daemon) guest(export string) *nbdguest.Client {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(d.t.Context(), patience)
	defer cancel()
	g, err := nbdguest.Dial(ctx, "unix", d.path("nbd"), export, nbdguest.Options{})
	must(d.t, err)
	d.t.Cleanup(g.Close)
	return g
}

// eventually polls until something holds.
func eventually(t testing.TB, what string, limit time.Duration, holds func() bool) {
	t.Helper()
	deadline := time.NewTimer(limit)
	defer deadline.Stop()
	again := time.NewTicker(10 * time.Millisecond)
	defer again.Stop()
	for !holds() {
		select {
		case <-again.C:
		case <-deadline.C:
			t.Fatalf("it did not come about in %v that %s", limit, what)
		}
	}
}
