// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// buildProgram builds a program of this module, with the race detector if the test
// has it.
func buildProgram(t *testing.T, folder, name string) string {
	t.Helper()
	program := filepath.Join(folder, name)
	args := []string{"build", "-o", program}
	if underRace {
		args = append(args, "-race")
	}
	args = append(args, "github.com/blkmirror/blkmirror/cmd/"+name)
	if output, err := exec.CommandContext(t.Context(), "go", args...).CombinedOutput(); err != nil {
		t.Fatalf("cannot build %s: %v\n%s", name, err, output)
	}
	return program
}

// house is a running daemon with a source of 64 MiB, 8 MiB of which are data,
// an empty target, and two monitors.
type house struct {
	t              *testing.T
	client         string
	source, target string
	sockets        [2]string
}

func newHouse(t *testing.T) *house {
	folder := shortFolder(t)
	h := &house{t: t, client: buildProgram(t, folder, "blkmirror"), source: filepath.Join(folder, "a"), target: filepath.Join(folder, "b"),
		sockets: [2]string{filepath.Join(folder, "q0"), filepath.Join(folder, "q1")}}
	data := bytes.Repeat([]byte("blkmirror is here "), 8<<20/18)
	if err := os.WriteFile(h.source, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(h.target, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{h.source, h.target} {
		if err := os.Truncate(path, 64<<20); err != nil {
			t.Fatal(err)
		}
	}
	pidFile := filepath.Join(folder, "pid")
	// With --daemonize the command returns when everything runs.
	start := exec.CommandContext(t.Context(), buildProgram(t, folder, "blkmirrord"), "--daemonize", "--pidfile", pidFile,
		"--blockdev", "driver=file,node-name=a,filename="+h.source, "--blockdev", "driver=file,node-name=b,filename="+h.target,
		"--qmp", h.sockets[0], "--qmp", h.sockets[1])
	if err := start.Run(); err != nil {
		t.Fatalf("the daemon does not start: %v", err)
	}
	t.Cleanup(func() {
		if r := h.run(0, "qmp", "quit"); r.status != exitOK {
			t.Errorf("quit: %+v", r)
		}
	})
	return h
}

func (h *house) command(monitor int, args ...string) *exec.Cmd {
	cmd := exec.Command(h.client, args...)
	cmd.Env = append(os.Environ(), envSocket+"="+h.sockets[monitor])
	return cmd
}

func (h *house) run(monitor int, args ...string) result {
	h.t.Helper()
	cmd := h.command(monitor, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	_ = cmd.Run() // its error says no more than the status does
	return result{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

// TestBlackBox drives a real daemon with the real client.
func TestBlackBox(t *testing.T) {
	if testing.Short() {
		t.Skip("builds programs")
	}
	h := newHouse(t)
	contains := func(r result, status int, texts ...string) {
		t.Helper()
		for _, text := range texts {
			if !strings.Contains(r.stdout+r.stderr, text) {
				t.Errorf("no %q in %+v", text, r)
			}
		}
		if r.status != status {
			t.Errorf("status %d, want %d: %+v", r.status, status, r)
		}
	}
	contains(h.run(0, "nodes"), exitOK, "64 MiB", h.source, h.target)
	contains(h.run(0, "mirror", "start", "a", "nowhere"), exitChecks, "nowhere")

	// A mirror that takes its time: a watcher on one monitor, commands on
	// the other.
	contains(h.run(0, "mirror", "start", "a", "b", "--job", "m", "--speed", "256K", "--buf-size", "64K"), exitOK, "job 'm' started")
	watcher := h.command(1, "mirror", "watch", "m")
	output := &waitingWriter{want: "m: running", found: make(chan struct{})}
	watcher.Stdout = output
	if err := watcher.Start(); err != nil {
		t.Fatal(err)
	}
	<-output.found
	contains(h.run(0, "mirror", "watch", "m", "--timeout", "300ms"), exitTimeout, "the job goes on")
	contains(h.run(0, "mirror", "pause", "m"), exitOK)
	contains(h.run(0, "jobs"), exitOK, "paused")
	contains(h.run(0, "mirror", "resume", "m"), exitOK)
	contains(h.run(0, "mirror", "speed", "m", "512K"), exitOK, "512 KiB/s")
	contains(h.run(0, "mirror", "cancel", "m", "--wait"), exitOK, "job 'm' is cancelled")
	_ = watcher.Wait()
	if status := watcher.ProcessState.ExitCode(); status != exitCancelled {
		t.Errorf("the watcher's status is %d", status)
	}

	// SIGINT leaves the job running.
	waiter := h.command(1, "mirror", "start", "a", "b", "--job", "i", "--speed", "256K", "--wait")
	output = &waitingWriter{want: "i: running", found: make(chan struct{})}
	var stderr bytes.Buffer
	waiter.Stdout, waiter.Stderr = output, &stderr
	if err := waiter.Start(); err != nil {
		t.Fatal(err)
	}
	<-output.found
	if err := waiter.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	_ = waiter.Wait()
	if status := waiter.ProcessState.ExitCode(); status != exitInterrupted || !strings.Contains(stderr.String(), "the job goes on") {
		t.Errorf("after SIGINT: status %d, %s", status, stderr.String())
	}
	contains(h.run(0, "jobs"), exitOK, "running")
	contains(h.run(0, "mirror", "speed", "i", "0"), exitOK, "no limit")
	contains(h.run(0, "mirror", "cancel", "i", "--force", "--wait"), exitOK)

	contains(h.run(0, "mirror", "start", "a", "b", "--complete"), exitOK, "job 'mirror-a' is completed")
	contains(h.run(0, "mirror", "complete", "mirror-a"), exitFailed, "mirror-a")
	want, err := os.ReadFile(h.source)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(h.target); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the target is not what the source is (%v)", err)
	}
}

// TestTerminal is the client on a terminal: it shows a bar.
func TestTerminal(t *testing.T) {
	if testing.Short() {
		t.Skip("builds programs")
	}
	h := newHouse(t)
	terminal, name := openTerminal(t)
	tty, err := os.OpenFile(name, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	shown := make(chan string)
	go func() {
		text, _ := io.ReadAll(terminal) // ends with an error when nobody has the other end
		shown <- string(text)
	}()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, h.client, "-s", h.sockets[0], "mirror", "start", "a", "b", "--job", "m", "--speed", "16M", "--buf-size", "64K", "--complete")
	cmd.Stdout, cmd.Stderr = tty, tty
	err = cmd.Run()
	tty.Close()
	text := <-shown
	if err != nil {
		t.Fatalf("%v: %q", err, text)
	}
	for _, want := range []string{"m running", "m concluded 100% [====", "skipped 56 MiB", "\x1b[2A", "job 'm' is completed"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in %q", want, text)
		}
	}
}

// waitingWriter tells when a text was written to it.
type waitingWriter struct {
	want  string
	found chan struct{}
	text  bytes.Buffer
	done  bool
}

func (w *waitingWriter) Write(text []byte) (int, error) {
	w.text.Write(text)
	if !w.done && strings.Contains(w.text.String(), w.want) {
		w.done = true
		close(w.found)
	}
	return len(text), nil
}
