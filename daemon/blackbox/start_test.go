// SPDX-License-Identifier: Apache-2.0

package blackbox

import (
	"context"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/blkmirror/blkmirror/qmp/client"
)

func allocated(info os.FileInfo) int64 { return info.Sys().(*syscall.Stat_t).Blocks * 512 }

// fails runs a daemon that must not start, and returns what it said.
func fails(t *testing.T, dir string, options ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, options...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err == nil || cmd.ProcessState.ExitCode() != 1 {
		t.Errorf("%v: %v, %s", options, err, out)
	}
	return string(out)
}

func TestSocketsArePrivateAndNotStolen(t *testing.T) {
	d := start(t)
	for _, name := range []string{"qmp", "nbd"} {
		info, err := os.Lstat(d.path(name))
		must(t, err)
		if info.Mode() != os.ModeSocket|0o600 {
			t.Errorf("%s has mode %v", name, info.Mode())
		}
	}
	if said := fails(t, d.dir, "--qmp", d.path("qmp")); !strings.Contains(said, "--qmp") || !strings.Contains(said, d.path("qmp")) {
		t.Errorf("it said: %s", said)
	}
	if said := fails(t, d.dir, "--nbd-server", "addr.type=unix,addr.path="+d.path("nbd")); !strings.Contains(said, d.path("nbd")) {
		t.Errorf("it said: %s", said)
	}
	must(t, os.WriteFile(d.path("file"), []byte("precious"), 0o600))
	fails(t, d.dir, "--qmp", d.path("file"))
	if text, err := os.ReadFile(d.path("file")); err != nil || string(text) != "precious" {
		t.Errorf("a file in the place of the socket: %q, %v", text, err)
	}
	d.alive()
	second, err := client.Dial(t.Context(), "unix", d.path("qmp"), client.Options{})
	must(t, err)
	must(t, second.Close())
}

func TestStaleSocketIsReplaced(t *testing.T) {
	d := start(t)
	must(t, syscall.Kill(d.pid, syscall.SIGKILL))
	<-d.exited
	d.status = 0 // as was intended
	if _, err := os.Lstat(d.path("qmp")); err != nil {
		t.Fatalf("there is no stale socket: %v", err)
	}
	e := launch(t, d.dir, "--qmp", d.path("qmp"), "--nbd-server", "addr.type=unix,addr.path="+d.path("nbd"))
	e.connect()
	e.alive()
	e.stop()
	for _, name := range []string{"qmp", "nbd"} {
		if _, err := os.Lstat(d.path(name)); !os.IsNotExist(err) {
			t.Errorf("%s is still there: %v", name, err)
		}
	}
}

func TestDaemonize(t *testing.T) {
	dir := folder(t)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	start := exec.CommandContext(ctx, program, "--daemonize", "--pidfile", "pid", "--qmp", "qmp")
	start.Dir = dir // the daemon leaves it, and has to find its files at the end
	out, err := start.CombinedOutput()
	if err != nil {
		t.Fatalf("%v, %s", err, out)
	}
	// Everything runs when the command returns.
	text, err := os.ReadFile(dir + "/pid")
	must(t, err)
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	must(t, err)
	must(t, syscall.Kill(pid, 0))
	c, err := client.Dial(ctx, "unix", dir+"/qmp", client.Options{})
	must(t, err)
	defer c.Close()
	must(t, c.Execute(ctx, "query-version", nil, nil))
	fails(t, dir, "--pidfile", dir+"/pid")
	must(t, c.Execute(ctx, "quit", nil, nil))
	eventually(t, "the pid file and the socket are gone", func() bool {
		_, err := os.Stat(dir + "/pid")
		_, err2 := os.Stat(dir + "/qmp")
		return os.IsNotExist(err) && os.IsNotExist(err2)
	})
	// What cannot start says so where it was started from.
	ctx2, cancel2 := context.WithTimeout(t.Context(), patience)
	defer cancel2()
	out, err = exec.CommandContext(ctx2, program, "--daemonize", "--blockdev", "driver=file,node-name=a,filename="+dir+"/none").CombinedOutput()
	if err == nil || !strings.Contains(string(out), dir+"/none") {
		t.Errorf("%v, %s", err, out)
	}
}
