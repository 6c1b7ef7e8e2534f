// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/blkmirror/blkmirror/qmp"
	"github.com/blkmirror/blkmirror/qmp/client"
)

// exportName is the name of every export.
const exportName = "disk"

// arguments are those of a command, as JSON has them.
type arguments = map[string]any

// daemon is a running storage daemon with a monitor.
type daemon struct {
	*process
	c       *contender
	b       *bench
	monitor *client.Client
	qmp     string // socket
	nbd     string // socket, once there is an export
	state   string // folder, if the contender keeps one
}

// startDaemon starts a contender without any nodes.
func (b *bench) startDaemon(ctx context.Context, c *contender) (*daemon, error) {
	d := &daemon{c: c, b: b, qmp: b.scratch("qmp")}
	if c.durability != "" {
		d.state = b.scratch("state")
	}
	p, err := startProcess(ctx, c.argv(nil, d.arguments()...), b.scratch("log"))
	if err != nil {
		return nil, err
	}
	d.process = p
	if d.monitor, err = d.connect(ctx); err != nil {
		d.kill()
		return nil, err
	}
	return d, nil
}

// startTimeout is how long a daemon may take to answer on its monitor. Some now and then never do.
const startTimeout = 20 * time.Second

// connect connects to the monitor. There is room for the events of a thousand jobs.
func (d *daemon) connect(ctx context.Context) (*client.Client, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, startTimeout, errTimeout)
	defer cancel()
	conn, err := d.dial(ctx, d.qmp)
	if err != nil {
		return nil, err
	}
	return client.New(ctx, conn, client.Options{EventBuffer: 1 << 16})
}

// escape writes a value of an option, in which a comma is doubled.
func escape(value string) string { return strings.ReplaceAll(value, ",", ",,") }

func (d *daemon) arguments() (args []string) {
	if d.c.iothread {
		args = append(args, "--object", "iothread,id=io")
	}
	if d.state != "" {
		args = append(args, "--state-dir", d.c.inside(d.state), "--mirror-durability", d.c.durability)
	}
	return append(args, "--chardev", "socket,id=monitor,server=on,wait=off,path="+escape(d.c.inside(d.qmp)), "--monitor", "chardev=monitor")
}

// kill ends the daemon, in case of a failure.
func (d *daemon) kill() {
	if d.monitor != nil {
		d.monitor.Close()
	}
	_ = d.cmd.Process.Kill() // it may have ended
	<-d.exited
	d.tidy()
}

func (d *daemon) tidy() {
	for _, path := range []string{d.qmp, d.nbd, d.log} {
		if path != "" {
			_ = os.Remove(path) // the folder is removed at the end in any case
		}
	}
	if d.state != "" {
		_ = os.RemoveAll(d.state)
	}
}

// quit ends the daemon in good order, so that everything is in the files.
func (d *daemon) quit(ctx context.Context) error {
	defer d.tidy()
	err := d.monitor.Execute(ctx, "quit", nil, nil)
	if err != nil && !errors.Is(err, client.ErrClosed) {
		// The connection may end before the reply is there.
		select {
		case <-d.exited:
		default:
			d.monitor.Close()
			_ = d.cmd.Process.Kill()
			<-d.exited
			return fmt.Errorf("quit: %w", err)
		}
	}
	d.monitor.Close()
	if err := d.wait(ctx); err != nil {
		return err
	}
	if d.err != nil {
		return d.died()
	}
	return nil
}

// refusal is the error for what a daemon does not have.
type refusal struct{ error }

func (r refusal) Unwrap() error { return r.error }

// execute carries out a command.
func (d *daemon) execute(ctx context.Context, command string, args arguments, result any) error {
	var a any
	if args != nil {
		a = args
	}
	err := d.monitor.Execute(ctx, command, a, result)
	if err == nil {
		return nil
	}
	select {
	case <-d.exited:
		return d.died()
	default:
	}
	return fmt.Errorf("%s: %w", command, err)
}

// setUp carries out a command that a daemon which does not have all features may refuse.
func (d *daemon) setUp(ctx context.Context, command string, args arguments) error {
	err := d.execute(ctx, command, args, nil)
	if _, refused := errors.AsType[*qmp.Error](err); refused {
		return refusal{err}
	}
	return err
}

// node are the options of a node of a format above a file.
func (d *daemon) node(name, format, path string, direct bool, more arguments) arguments {
	cache := arguments{"direct": direct || d.c.direct || d.c.aio == "native", "no-flush": true}
	file := arguments{"driver": "file", "filename": d.c.inside(path), "aio": d.c.aio, "cache": cache}
	n := arguments{"driver": format, "node-name": name, "cache": cache, "file": file}
	for key, value := range more {
		n[key] = value
		if key == "discard" {
			file[key] = value
		}
	}
	return n
}

// add opens a node.
func (d *daemon) add(ctx context.Context, node arguments) error {
	return d.setUp(ctx, "blockdev-add", node)
}

// export exports a node over NBD.
func (d *daemon) export(ctx context.Context, node string) error {
	d.nbd = d.b.scratch("nbd")
	err := d.setUp(ctx, "nbd-server-start", arguments{"max-connections": 0,
		"addr": arguments{"type": "unix", "data": arguments{"path": d.c.inside(d.nbd)}}})
	if err != nil {
		return err
	}
	args := arguments{"type": "nbd", "id": "guest", "node-name": node, "name": exportName, "writable": true}
	if d.c.iothread {
		args["iothread"] = "io"
	}
	return d.setUp(ctx, "block-export-add", args)
}

// startMirror starts a mirror with auto-dismiss.
func (d *daemon) startMirror(ctx context.Context, id, source, target string, more arguments) error {
	args := arguments{"job-id": id, "device": source, "target": target, "sync": "full"}
	if d.c.granularity > 0 {
		args["granularity"] = d.c.granularity
	}
	if d.c.bufSize > 0 {
		args["buf-size"] = d.c.bufSize
	}
	if d.c.targetIsZero {
		args["target-is-zero"] = true
	}
	for key, value := range more {
		args[key] = value
	}
	return d.setUp(ctx, "blockdev-mirror", args)
}

// awaitJobs waits for one event of each of so many jobs: BLOCK_JOB_READY or BLOCK_JOB_COMPLETED.
func (d *daemon) awaitJobs(ctx context.Context, event string, jobs int) error {
	for jobs > 0 {
		select {
		case e, ok := <-d.monitor.Events():
			if !ok {
				select {
				case <-d.exited:
					return d.died()
				default:
					return errors.New("the monitor is gone")
				}
			}
			if e.Lost > 0 {
				return fmt.Errorf("%d events were lost", e.Lost)
			}
			switch e.Name {
			case "BLOCK_JOB_ERROR":
				return errors.New("an I/O error of a job")
			case "BLOCK_JOB_CANCELLED", "BLOCK_JOB_COMPLETED":
				id, _ := e.Data.Get("device")
				if text, failed := e.Data.Get("error"); failed {
					return fmt.Errorf("job %v: %v", id, text)
				}
				if e.Name != event {
					return fmt.Errorf("job %v ended before its time", id)
				}
				jobs--
			case event:
				jobs--
			}
		case <-d.exited:
			return d.died()
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w", event, context.Cause(ctx))
		}
	}
	return nil
}

// complete lets a job complete and waits for that.
func (d *daemon) complete(ctx context.Context, id string) error {
	if err := d.execute(ctx, "job-complete", arguments{"id": id}, nil); err != nil {
		return err
	}
	return d.awaitJobs(ctx, "BLOCK_JOB_COMPLETED", 1)
}

// remaining is how many bytes a job has yet to copy.
func (d *daemon) remaining(ctx context.Context, id string) (int64, error) {
	var jobs []struct {
		ID      string `json:"id"`
		Current int64  `json:"current-progress"`
		Total   int64  `json:"total-progress"`
	}
	if err := d.execute(ctx, "query-jobs", nil, &jobs); err != nil {
		return 0, err
	}
	for _, j := range jobs {
		if j.ID == id {
			return j.Total - j.Current, nil
		}
	}
	return 0, fmt.Errorf("there is no job %s", id)
}
