// SPDX-License-Identifier: Apache-2.0

package metamorphic

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"github.com/blkmirror/blkmirror/block/nbd/nbdguest"
	"github.com/blkmirror/blkmirror/daemon"
	"github.com/blkmirror/blkmirror/qmp/client"
)

// patience is how long a history may take, and how long the daemon's end.
const patience = 2 * time.Minute

type args map[string]any

// rig is a daemon in this process with an operator and a guest, over its real sockets.
type rig struct {
	dir      string
	ended    chan int // its exit status
	said     output
	operator *client.Client
	guest    *nbdguest.Client
}

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
	return o.mu.String()
}

func (r *rig) path(name string) string { return filepath.Join(r.dir, name) }

// newRig starts a daemon, opens the source, exports it, and connects a guest. After an error, too, it has to be closed.
func newRig(ctx context.Context, dir string, s set) (*rig, error) {
	r := &rig{dir: dir, ended: make(chan int, 1)}
	go func() {
		// The monitor comes last: once it answers, the rest is there.
		r.ended <- daemon.Main([]string{"--object", "throttle-group,id=group,limits.bps-total=1000000000",
			"--nbd-server", "addr.type=unix,addr.path=" + r.path("nbd"), "--qmp", r.path("qmp")}, &r.said, &r.said)
	}()
	if err := r.connect(ctx); err != nil {
		return r, err
	}
	if err := r.open(ctx, "source", s.source, false); err != nil {
		return r, err
	}
	if err := r.do(ctx, "block-export-add",
		args{"type": "nbd", "id": "export", "node-name": "source", "name": "disk", "writable": true}); err != nil {
		return r, err
	}
	var err error
	r.guest, err = nbdguest.Dial(ctx, "unix", r.path("nbd"), "disk", nbdguest.Options{SimpleReplies: s.simple})
	return r, err
}

// connect waits until the monitor is there.
func (r *rig) connect(ctx context.Context) error {
	again := time.NewTicker(time.Millisecond)
	defer again.Stop()
	for {
		var err error
		if r.operator, err = client.Dial(ctx, "unix", r.path("qmp"), client.Options{EventBuffer: 1 << 14}); err == nil {
			return nil
		}
		select {
		case <-again.C:
		case status := <-r.ended:
			r.ended <- status
			return fmt.Errorf("the daemon ended with status %d", status)
		case <-ctx.Done():
			return fmt.Errorf("no monitor: %w", err)
		}
	}
}

// close ends the daemon and says whether that went well.
func (r *rig) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if r.guest != nil {
		r.guest.Close()
	}
	if r.operator == nil {
		return fmt.Errorf("the daemon ended with status %d: %s", <-r.ended, r.said.String())
	}
	err := r.do(ctx, "quit", nil)
	_ = r.operator.Close()
	select {
	case status := <-r.ended:
		if status != 0 && err == nil {
			err = fmt.Errorf("the daemon ended with status %d: %s", status, r.said.String())
		}
	case <-ctx.Done():
		stacks := make([]byte, 1<<20)
		panic(fmt.Sprintf("the daemon does not end:\n%s", stacks[:runtime.Stack(stacks, true)]))
	}
	return err
}

func (r *rig) do(ctx context.Context, command string, a args) error {
	var arguments any
	if a != nil {
		arguments = a
	}
	if err := r.operator.Execute(ctx, command, arguments, nil); err != nil {
		return fmt.Errorf("%s %v: %w", command, a, err)
	}
	return nil
}

// wait waits for the event that a job has come to a state.
func (r *rig) wait(ctx context.Context, job string, states ...string) error {
	for {
		select {
		case e, ok := <-r.operator.Events():
			if !ok {
				return fmt.Errorf("the monitor ended before %s was %v", job, states)
			}
			if text, failed := e.Data.Get("error"); failed {
				return fmt.Errorf("%s %v: %v", e.Name, job, text)
			}
			id, _ := e.Data.Get("id")
			status, _ := e.Data.Get("status")
			for _, s := range states {
				if e.Name == "JOB_STATUS_CHANGE" && id == job && status == s {
					return nil
				}
			}
		case <-ctx.Done():
			return fmt.Errorf("%s is not %v: %w", job, states, ctx.Err())
		}
	}
}

// windowAt is where the disk begins in the file under a window.
const windowAt = 1<<20 + 4096

// image makes the file of a disk, which holds rubbish everywhere or nothing.
func (r *rig) image(name string, d disk, rubbish bool) error {
	size := int64(diskSize)
	if d.stack == "window" {
		size += windowAt + 1<<20
	}
	f, err := os.Create(r.path(name))
	if err != nil {
		return err
	}
	defer f.Close()
	if rubbish {
		p := make([]byte, size)
		filled(p, 0)
		_, err = f.Write(p)
	} else {
		err = f.Truncate(size)
	}
	return err
}

// content reads a disk from its file.
func (r *rig) content(name string, d disk) ([]byte, error) {
	all, err := os.ReadFile(r.path(name))
	if err == nil && d.stack == "window" {
		all = all[windowAt : windowAt+diskSize]
	}
	return all, err
}

// open makes an image and opens it as a node of the same name.
func (r *rig) open(ctx context.Context, name string, d disk, rubbish bool) error {
	if err := r.image(name, d, rubbish); err != nil {
		return err
	}
	common := args{"discard": map[bool]string{false: "ignore", true: "unmap"}[d.unmap],
		"cache": args{"direct": d.direct, "no-flush": false}}
	node := args{"driver": "file", "filename": r.path(name)}
	add := func(a args) {
		for key, value := range common {
			a[key] = value
		}
	}
	add(node)
	if d.stack != "file" {
		node = args{"driver": "raw", "file": node}
		add(node)
	}
	switch d.stack {
	case "window":
		node["offset"], node["size"] = windowAt, diskSize
	case "throttle":
		node = args{"driver": "throttle", "throttle-group": "group", "file": node}
		add(node)
	}
	node["node-name"], node["detect-zeroes"] = name, d.detect
	return r.do(ctx, "blockdev-add", node)
}
