// SPDX-License-Identifier: Apache-2.0

package server

import (
	"bufio"
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	foreign "github.com/digitalocean/go-qemu/qmp"
	"golang.org/x/sys/unix"

	"github.com/blkmirror/blkmirror/qmp/api"
	"github.com/blkmirror/blkmirror/qmp/client"
)

func TestListenSockets(t *testing.T) {
	path := filepath.Join(t.TempDir(), "qmp")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if _, err := Listen(path); err == nil || !strings.Contains(err.Error(), "'"+path+"': another process listens on it") {
		t.Errorf("a live socket: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the path is still there: %v", err)
	}

	// A socket that its process left behind.
	stale, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	stale.(*net.UnixListener).SetUnlinkOnClose(false)
	stale.Close()
	if l, err = Listen(path); err != nil {
		t.Fatal("a stale socket:", err)
	}

	// Somebody replaces the path: it is not ours to remove.
	os.Remove(path)
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	l.Close()
	if _, err := os.Lstat(path); err != nil {
		t.Error("removed what is not its own:", err)
	}
	if _, err := Listen(path); err == nil || !strings.Contains(err.Error(), "not a socket") {
		t.Errorf("a regular file: %v", err)
	}
	if _, err := Listen(filepath.Join(path, "below")); err == nil {
		t.Error("listens below a file")
	}
}

func TestListenFD(t *testing.T) {
	path := filepath.Join(t.TempDir(), "qmp")
	orig, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer orig.Close()
	file, err := orig.(*net.UnixListener).File()
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Dup(int(file.Fd()))
	file.Close()
	if err != nil {
		t.Fatal(err)
	}
	l, err := ListenFD(fd)
	if err != nil {
		t.Fatal(err)
	}
	s := New(Config{Commands: echo})
	served := make(chan error)
	go func() { served <- s.Serve(l, ListenerOptions{}) }()
	p := negotiated(t, path)
	p.ask(`{"execute": "void"}`, `{"return": {}}`)
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); err != nil {
		t.Error("the path of somebody else is gone:", err)
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	if _, err := ListenFD(int(null.Fd())); err == nil {
		t.Error("listens on /dev/null")
	}
}

func TestTCP(t *testing.T) {
	l, err := ListenTCP("127.0.0.1", "0")
	if err != nil {
		t.Fatal(err)
	}
	s := New(Config{Commands: echo})
	served := make(chan error)
	go func() { served <- s.Serve(l, ListenerOptions{}) }()
	c, err := client.Dial(context.Background(), "tcp", l.Addr().String(), client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Execute(context.Background(), "void", nil, nil); err != nil {
		t.Error(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if err := c.Execute(context.Background(), "void", nil, nil); err == nil {
		t.Error("executed after the end")
	}
	c.Close()
	<-served
}

// TestServeConn checks a session on something that is not a socket.
func TestServeConn(t *testing.T) {
	s := New(Config{Commands: echo})
	inR, inW := io.Pipe()
	outR, outW := io.Pipe()
	served := make(chan error)
	go func() { served <- s.ServeConn(pipes{inR, outW}, ListenerOptions{}) }()
	out := bufio.NewReader(outR)
	out.ReadString('\n')
	io.WriteString(inW, `{"execute": "qmp_capabilities"}`)
	if got, err := out.ReadString('\n'); got != "{\"return\": {}}\r\n" {
		t.Error(got, err)
	}
	inW.Close()
	if err := <-served; err != nil {
		t.Error(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if err := s.ServeConn(pipes{inR, outW}, ListenerOptions{}); err != ErrClosed {
		t.Error(err)
	}
}

type pipes struct {
	*io.PipeReader
	*io.PipeWriter
}

func (p pipes) Close() error { return errors.Join(p.PipeReader.Close(), p.PipeWriter.Close()) }

// TestForeignClient talks to the server with go-qemu's client.
func TestForeignClient(t *testing.T) {
	s, path := start(t, Config{Commands: echo}, ListenerOptions{})
	m, err := foreign.NewSocketMonitor("unix", path, 2*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Connect(); err != nil {
		t.Fatal(err)
	}
	if got := m.Version.String(); got != "11.1.3" {
		t.Errorf("version %s", got)
	}
	if got, err := m.Run([]byte(`{"execute": "echo", "arguments": {"a": "ä"}}`)); err != nil || string(got) != `{"return": {"a": "\u00E4"}}` {
		t.Errorf("got %s, %v", got, err)
	}
	if _, err := m.Run([]byte(`{"execute": "nope"}`)); err == nil || !strings.Contains(err.Error(), "has not been found") {
		t.Errorf("got %v", err)
	}
	events, err := m.Events(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	s.Emit(&api.BlockJobReadyEvent{Device: "m", Type: api.JobTypeMirror, Len: 5, Offset: 5})
	if e := <-events; e.Event != "BLOCK_JOB_READY" || e.Data["device"] != "m" || e.Data["len"] != 5.0 || e.Timestamp.Seconds == 0 {
		t.Errorf("got %+v", e)
	}
	if err := m.Disconnect(); err != nil {
		t.Error(err)
	}
}

// BenchmarkQuery is the hot path: one small query after the other.
func BenchmarkQuery(b *testing.B) {
	_, path := start(b, Config{Commands: echo}, ListenerOptions{})
	p := negotiated(b, path)
	request := []byte(`{"execute": "void", "id": 1}` + "\n")
	b.ReportAllocs()
	for b.Loop() {
		p.Write(request)
		if _, err := p.in.ReadSlice('\n'); err != nil {
			b.Fatal(err)
		}
	}
}
