// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/blkmirror/blkmirror/qmp/client"
)

// Times that a daemon may take on a machine that has other work, too.
const (
	startLimit   = 20 * time.Second
	commandLimit = 20 * time.Second
	stopLimit    = 30 * time.Second
)

// args are the arguments of a command, or a definition.
type args map[string]any

// daemon is the daemon under test: one process after the other, with one command line.
type daemon struct {
	folder  string
	argv    []string
	process *process
	monitor *client.Client
	starts  int

	reader sync.WaitGroup
	mu     struct {
		sync.Mutex
		events map[string]int    // how many came, by name; those of jobs by name and id, too
		last   map[string]string // error, reason or the like of the last one, by name
		errors map[string]int    // BLOCK_JOB_ERROR by operation
		lost   bool
	}
}

func newDaemon(folder, program string, options ...string) *daemon {
	d := &daemon{folder: folder, argv: append([]string{program, "--qmp", "qmp"}, options...)}
	d.mu.events, d.mu.last, d.mu.errors = map[string]int{}, map[string]string{}, map[string]int{}
	return d
}

// option is an option of the command line with a definition.
func option(name string, a args) []string {
	text, err := json.Marshal(a)
	if err != nil {
		panic(err) // it is made of literals
	}
	return []string{name, string(text)}
}

func (d *daemon) path(name string) string { return filepath.Join(d.folder, name) }

// start starts the daemon and connects to its monitor. A daemon that ends instead is an *exitError.
func (d *daemon) start(ctx context.Context) (err error) {
	d.starts++
	if d.process, err = launch(d.folder, d.path("daemon.log"), d.argv...); err != nil {
		return err
	}
	return until(ctx, startLimit, "the daemon's monitor answers", func() (bool, error) {
		if !d.process.alive() {
			return false, d.died()
		}
		dial, cancel := context.WithTimeout(ctx, startLimit)
		defer cancel()
		c, err := client.Dial(dial, "unix", d.path("qmp"), client.Options{EventBuffer: 1 << 14})
		if err != nil {
			return false, nil // not yet
		}
		d.monitor = c
		d.reader.Go(func() { d.listen(c) })
		return true, nil
	})
}

// exitError is a daemon that ended when it should not.
type exitError struct {
	status int
	said   string
}

func (e *exitError) Error() string {
	return fmt.Sprintf("the daemon ended with status %d: %s", e.status, e.said)
}

func (d *daemon) died() error {
	text, _ := os.ReadFile(d.process.log) // it is only told
	if i := bytes.LastIndex(text, []byte("\n---- ")); i >= 0 {
		text = text[i+1:]
	}
	return &exitError{d.process.cmd.ProcessState.ExitCode(), string(text[max(0, len(text)-2000):])}
}

// listen counts events until the connection ends.
func (d *daemon) listen(c *client.Client) {
	for e := range c.Events() {
		member := func(name string) string {
			v, there := e.Data.Get(name)
			if !there {
				return ""
			}
			return fmt.Sprint(v)
		}
		id := member("device") + member("id")
		d.mu.Lock()
		d.mu.lost = d.mu.lost || e.Lost > 0
		d.mu.events[e.Name]++
		d.mu.events[e.Name+" "+id]++
		switch e.Name {
		case "BLOCK_JOB_ERROR":
			d.mu.errors[member("operation")]++
			d.mu.last[e.Name+" "+id] = fmt.Sprintf("%s of %s bytes at %s: errno %s, %s", member("operation"), member("length"), member("offset"),
				member("errno"), member("action"))
		case "JOB_STATUS_CHANGE":
			d.mu.last[e.Name+" "+id] = member("status")
		default:
			d.mu.last[e.Name+" "+id] = member("error")
		}
		d.mu.Unlock()
	}
}

// seen is how many events of a name came; of one job, with a space and its id.
func (d *daemon) seen(event string) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.mu.events[event]
}

// said is what the last event of a name had to say.
func (d *daemon) said(event string) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.mu.last[event]
}

// hangUp ends the connection to the monitor.
func (d *daemon) hangUp() {
	if d.monitor != nil {
		d.monitor.Close()
		d.reader.Wait()
		d.monitor = nil
	}
}

// kill ends the daemon as a power switch would.
func (d *daemon) kill() {
	d.process.kill()
	d.hangUp()
}

// stop has the daemon end in good order.
func (d *daemon) stop(ctx context.Context, how func()) error {
	how()
	status, err := d.process.wait(ctx, stopLimit)
	if err == nil && status != 0 {
		err = d.died()
	}
	d.hangUp()
	return err
}

// do executes a command.
func (d *daemon) do(ctx context.Context, command string, a args, result any) error {
	limited, cancel := context.WithTimeout(ctx, commandLimit)
	defer cancel()
	var arguments any
	if a != nil {
		arguments = a
	}
	err := d.monitor.Execute(limited, command, arguments, result)
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%s %v: no reply within %v", command, a, commandLimit)
	case !d.process.alive():
		return d.died()
	}
	return fmt.Errorf("%s %v: %w", command, a, err)
}

// job is what is looked at of a job.
type job struct {
	ID       string `json:"device"`
	Status   string `json:"status"`
	Paused   bool   `json:"paused"`
	Ready    bool   `json:"ready"`
	IOStatus string `json:"io-status"`
	Offset   int64  `json:"offset"`
	Len      int64  `json:"len"`
}

// jobNamed returns a job, or nil.
func (d *daemon) jobNamed(ctx context.Context, id string) (*job, error) {
	var jobs []job
	if err := d.do(ctx, "query-block-jobs", nil, &jobs); err != nil {
		return nil, err
	}
	for _, j := range jobs {
		if j.ID == id {
			return &j, nil
		}
	}
	return nil, nil
}

// exported is the node that an export shows now. A job's filter stands for its source.
func (d *daemon) exported(ctx context.Context, id string) (string, error) {
	var exports []struct {
		ID   string `json:"id"`
		Node string `json:"node-name"`
	}
	if err := d.do(ctx, "query-block-exports", nil, &exports); err != nil {
		return "", err
	}
	for _, e := range exports {
		switch {
		case e.ID != id:
		case e.Node == filterNode || generatedNames.MatchString(e.Node):
			return sourceNode, nil
		default:
			return e.Node, nil
		}
	}
	return "", fmt.Errorf("there is no export '%s'", id)
}

// picture is what a monitor's client sees of nodes and exports, but for what changes by itself.
func (d *daemon) picture(ctx context.Context) (string, error) {
	var nodes, exports []map[string]any
	if err := d.do(ctx, "query-named-block-nodes", args{"flat": true}, &nodes); err != nil {
		return "", err
	}
	if err := d.do(ctx, "query-block-exports", nil, &exports); err != nil {
		return "", err
	}
	var lines []string
	for _, n := range append(nodes, exports...) {
		if image, ok := n["image"].(map[string]any); ok {
			delete(image, "actual-size")
			delete(image, "virtual-size") // of a file, that grows below a format
			delete(image, "dirty-flag")
			delete(image, "format-specific") // an image that was damaged is marked
		}
		text, err := json.Marshal(n)
		if err != nil {
			return "", err
		}
		lines = append(lines, generatedNames.ReplaceAllString(string(text), "#block"))
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n"), nil
}
