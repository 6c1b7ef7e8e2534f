// SPDX-License-Identifier: Apache-2.0

package browser

import (
	"bytes"
	"context"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/blkmirror/blkmirror/block/nbd/nbdguest"
	"github.com/blkmirror/blkmirror/qmp/client"
)

// patience is how long anything may take that should be quick.
const patience = 30 * time.Second

type args map[string]any

// daemon is a running daemon with a web page.
type daemon struct {
	t      *testing.T
	dir    string
	url    string
	client *client.Client
	log    output
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
	return o.mu.Buffer.String()
}

var listening = regexp.MustCompile(`msg="web page" addr="?(127\.0\.0\.1:\d+)`)

// start starts a daemon with a page on any port.
func start(t *testing.T, options ...string) *daemon {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "br-")
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	d := &daemon{t: t, dir: dir}
	cmd := exec.Command(program, append([]string{"--qmp", d.path("qmp"), "--nbd-server", "addr.type=unix,addr.path=" + d.path("nbd"),
		"--web", "127.0.0.1:0"}, options...)...)
	cmd.Dir, cmd.Stderr = dir, &d.log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started, ended := make(chan error), make(chan error, 1)
	go func() {
		runtime.LockOSThread() // the kernel takes the thread for the parent
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			ended <- cmd.Wait()
		}
	}()
	must(t, <-started)
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("the daemon ended: %v\n%s", err, d.log.String())
			}
		case <-time.After(patience):
			_ = cmd.Process.Signal(syscall.SIGQUIT)
			<-ended
			t.Errorf("the daemon did not end: %s", d.log.String())
		}
	})
	eventually(t, "the page listens", func() bool {
		found := listening.FindStringSubmatch(d.log.String())
		if found != nil {
			d.url = "http://" + found[1] + "/"
		}
		return found != nil
	})
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	d.client, err = client.Dial(ctx, "unix", d.path("qmp"), client.Options{})
	must(t, err)
	t.Cleanup(func() { _ = d.client.Close() })
	return d
}

func (d *daemon) path(name string) string { return filepath.Join(d.dir, name) }

func (d *daemon) do(command string, a args) {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(d.t.Context(), patience)
	defer cancel()
	var arguments any
	if a != nil {
		arguments = a
	}
	if err := d.client.Execute(ctx, command, arguments, nil); err != nil {
		d.t.Fatalf("%s %v: %v", command, a, err)
	}
}

// disk makes an image of size bytes with data in some places, and a node for it.
func (d *daemon) disk(node string, size int64, data ...int64) {
	d.t.Helper()
	f, err := os.Create(d.path(node + ".img"))
	must(d.t, err)
	defer f.Close()
	must(d.t, f.Truncate(size))
	dice := rand.New(rand.NewPCG(uint64(size), 1))
	text := make([]byte, 1<<20)
	for i := 0; i+1 < len(data); i += 2 {
		for at := data[i]; at < data[i]+data[i+1]; at += int64(len(text)) {
			for k := range text {
				text[k] = byte(dice.Uint32())
			}
			_, err = f.WriteAt(text, at)
			must(d.t, err)
		}
	}
	d.do("blockdev-add", args{"driver": "raw", "node-name": node,
		"file": args{"driver": "file", "node-name": node + "-file", "filename": d.path(node + ".img")}})
}

// guest connects to an export, and uses the disk until the test ends, each time in one of a few places: a read, and a write of 64 KiB.
func (d *daemon) guest(export string, size int64, pause time.Duration) {
	d.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	g, err := nbdguest.Dial(ctx, "unix", d.path("nbd"), export, nbdguest.Options{})
	must(d.t, err)
	ended := make(chan struct{})
	d.t.Cleanup(func() {
		cancel()
		<-ended
		g.Close()
	})
	go func() {
		defer close(ended)
		dice := rand.New(rand.NewPCG(1, 2))
		data := make([]byte, 64<<10)
		tick := time.NewTicker(pause)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
			for range 1 + dice.IntN(6) {
				at := uint64(dice.Int64N(size/int64(len(data)))) * uint64(len(data))
				if dice.IntN(3) > 0 {
					at = uint64(size)/2 + at%(uint64(size)/32)
				}
				data[0]++
				if dice.IntN(2) == 0 {
					err = g.ReadAt(ctx, data, at)
				} else {
					err = g.WriteAt(ctx, data, at, 0)
				}
				if err != nil {
					return // the daemon or the test ends
				}
			}
		}
	}()
}

// eventually polls until something holds.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	for !holds() {
		select {
		case <-again.C:
		case <-deadline.C:
			t.Fatalf("it did not come about that %s", what)
		}
	}
}
