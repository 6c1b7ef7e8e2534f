// SPDX-License-Identifier: Apache-2.0

package images

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/blkmirror/blkmirror/block/nbd/nbdguest"
	"github.com/blkmirror/blkmirror/qmp/client"
)

// patience is how long anything may take that should be quick.
const patience = 30 * time.Second

// args are the arguments of a command.
type args map[string]any

// daemon is a running daemon.
type daemon struct {
	t      testing.TB
	dir    string // of the images
	socket string // directory of its sockets
	pid    int
	exited chan struct{} // closed when the process has ended
	status int           // valid then
	ended  bool          // by the test
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
	dir, err := os.MkdirTemp("/tmp", "im-")
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// start starts a daemon with a monitor and an NBD server in the folder of the images. It is told to end when the test does,
// and must do so in good order.
func start(t testing.TB, dir string, options ...string) *daemon {
	t.Helper()
	d := &daemon{t: t, dir: dir, socket: folder(t), exited: make(chan struct{})}
	cmd := exec.Command(program, append([]string{"--qmp", filepath.Join(d.socket, "qmp"),
		"--nbd-server", "addr.type=unix,addr.path=" + filepath.Join(d.socket, "nbd")}, options...)...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, &d.stderr, &d.stderr
	cmd.Env = append(os.Environ(), "GOMEMLIMIT=1GiB")
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
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	eventually(t, "the monitor answers", func() bool {
		select {
		case <-d.exited:
			t.Fatalf("the daemon ended with status %d: %s", d.status, d.stderr.String())
		default:
		}
		c, err := client.Dial(ctx, "unix", filepath.Join(d.socket, "qmp"), client.Options{EventBuffer: 1 << 16})
		d.client = c
		return err == nil
	})
	return d
}

// kill ends the daemon as the kernel does when memory is short.
func (d *daemon) kill() {
	d.ended = true
	_ = syscall.Kill(d.pid, syscall.SIGKILL)
	<-d.exited
	_ = d.client.Close()
}

// stop ends the daemon and looks at how it went.
func (d *daemon) stop() {
	if d.ended {
		return
	}
	d.ended = true
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
	if text := d.stderr.String(); strings.Contains(text, "panic") || strings.Contains(text, "goroutine ") || d.t.Failed() {
		d.t.Errorf("the daemon said: %s", text)
	}
}

// path is that of an image.
func (d *daemon) path(name string) string { return filepath.Join(d.dir, name) }

// uri is the address of an export.
func (d *daemon) uri(export string) string {
	return "nbd+unix:///" + export + "?socket=" + filepath.Join(d.socket, "nbd")
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
		text, _ := e.Data.Get("error")
		names = append(names, fmt.Sprint(e.Name, " ", status, text))
	}
	return names
}

// job runs a command that starts a job m to its end. A job that gets ready is completed.
func (d *daemon) job(command string, a args) {
	d.t.Helper()
	d.do(command, a)
	d.finish(a["job-id"])
}

// finish waits for the end of a job.
func (d *daemon) finish(id any) {
	d.t.Helper()
	timeout := time.After(patience)
	for {
		select {
		case e := <-d.client.Events():
			d.events = append(d.events, e)
			switch {
			case e.Name == "BLOCK_JOB_READY" && has(e, args{"device": id}):
				d.do("job-complete", args{"id": id})
			case e.Name == "BLOCK_JOB_COMPLETED" && has(e, args{"device": id}):
				if text, failed := e.Data.Get("error"); failed {
					d.t.Fatalf("job %v failed: %v", id, text)
				}
			case e.Name == "JOB_STATUS_CHANGE" && has(e, args{"id": id, "status": "null"}):
				return
			}
		case <-timeout:
			d.t.Fatalf("job %v does not end; came: %v", id, show(d.events))
		}
	}
}

// qcow2 opens an image as a node of its name.
func (d *daemon) qcow2(name string, options args) {
	d.t.Helper()
	d.do("blockdev-add", imageNode(name, d.path(name), options))
}

func imageNode(node, path string, options args) args {
	a := args{"driver": "qcow2", "node-name": node, "discard": "unmap",
		"file": args{"driver": "file", "node-name": node + "-file", "filename": path}}
	for name, value := range options {
		a[name] = value
	}
	return a
}

// create makes an image through a node of its name, which goes again.
func (d *daemon) create(name string, options args) {
	d.t.Helper()
	must(d.t, os.WriteFile(d.path(name), nil, 0o600))
	a := args{"driver": "qcow2", "file": "new"}
	for key, value := range options {
		a[key] = value
	}
	d.do("blockdev-add", args{"driver": "file", "node-name": "new", "filename": d.path(name)})
	if _, external := a["data-file"]; external {
		must(d.t, os.WriteFile(d.path(name+".data"), nil, 0o600))
		d.do("blockdev-add", args{"driver": "file", "node-name": "new-data", "filename": d.path(name + ".data")})
		a["data-file"] = "new-data"
		defer d.do("blockdev-del", args{"node-name": "new-data"})
	}
	d.do("blockdev-create", args{"job-id": "make", "options": a})
	d.wait("JOB_STATUS_CHANGE", args{"id": "make", "status": "concluded"})
	var jobs []struct{ ID, Error string }
	must(d.t, d.query("query-jobs", nil, &jobs))
	for _, j := range jobs {
		if j.ID == "make" && j.Error != "" {
			d.t.Fatalf("blockdev-create %v: %s", a, j.Error)
		}
	}
	d.do("job-dismiss", args{"id": "make"})
	d.do("blockdev-del", args{"node-name": "new"})
}

// export exports a node for writing under its own name.
func (d *daemon) export(node string) {
	d.t.Helper()
	d.do("block-export-add", args{"type": "nbd", "id": "export-" + node, "node-name": node, "writable": true})
}

// close takes a node and its export away.
func (d *daemon) close(node string) {
	d.t.Helper()
	d.do("block-export-del", args{"id": "export-" + node, "mode": "hard"})
	eventually(d.t, "the export has gone", func() bool {
		var list []struct{ ID string }
		must(d.t, d.query("query-block-exports", nil, &list))
		for _, e := range list {
			if e.ID == "export-"+node {
				return false
			}
		}
		return true
	})
	d.do("blockdev-del", args{"node-name": node})
}

// connect connects to an export.
func (d *daemon) connect(export string) *nbdguest.Client {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(d.t.Context(), patience)
	defer cancel()
	g, err := nbdguest.Dial(ctx, "unix", filepath.Join(d.socket, "nbd"), export, nbdguest.Options{})
	must(d.t, err)
	d.t.Cleanup(g.Close)
	return g
}

// read reads all of an export.
func (d *daemon) read(export string) []byte {
	d.t.Helper()
	g := d.connect(export)
	defer g.Close()
	b := make([]byte, g.Size())
	must(d.t, g.ReadAt(d.t.Context(), b, 0))
	return b
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
