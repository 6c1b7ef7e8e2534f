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
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	foreign "github.com/digitalocean/go-qemu/qmp"
	"github.com/sirupsen/logrus"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/blkmirror/blkmirror/qmp"
	"github.com/blkmirror/blkmirror/qmp/api"
	"github.com/blkmirror/blkmirror/qmp/client"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// handler is Config.Commands of a test.
type handler = func(ctx context.Context, name string, args *qmp.Object) (any, error)

// start serves on a socket in a temporary folder until the test ends.
func start(t testing.TB, config Config, opts ListenerOptions) (*Server, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "qmp")
	config.Version = api.VersionInfo{QEMU: api.VersionTriple{Major: 11, Minor: 1, Micro: 3}, Package: "test"}
	s := New(config)
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l, opts) }()
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error("Close:", err)
		}
		if err := <-served; err != nil {
			t.Error("Serve:", err)
		}
	})
	return s, path
}

// peer is a client that sees every byte.
type peer struct {
	t testing.TB
	*net.UnixConn
	in *bufio.Reader
}

func dial(t testing.TB, path string) *peer {
	t.Helper()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(20 * time.Second))
	t.Cleanup(func() { c.Close() })
	return &peer{t, c.(*net.UnixConn), bufio.NewReader(c)}
}

// negotiated returns a client that is past greeting and negotiation.
func negotiated(t testing.TB, path string) *peer {
	t.Helper()
	p := dial(t, path)
	p.line()
	p.ask(`{"execute": "qmp_capabilities"}`, `{"return": {}}`)
	return p
}

func (p *peer) send(text string) {
	p.t.Helper()
	if _, err := io.WriteString(p, text); err != nil {
		p.t.Fatal(err)
	}
}

// line returns the next line without its end, which must be CRLF.
func (p *peer) line() string {
	p.t.Helper()
	text, err := p.in.ReadString('\n')
	if err != nil {
		p.t.Fatalf("reading: %v after %q", err, text)
	}
	text, ok := strings.CutSuffix(text, "\r\n")
	if !ok {
		p.t.Fatalf("line end of %q", text)
	}
	return text
}

func (p *peer) want(line string) {
	p.t.Helper()
	if got := p.line(); got != line {
		p.t.Fatalf("got  %s\nwant %s", got, line)
	}
}

func (p *peer) ask(text, line string) {
	p.t.Helper()
	p.send(text + "\n")
	p.want(line)
}

func (p *peer) wantEOF() {
	p.t.Helper()
	if rest, err := io.ReadAll(p.in); err != nil || len(rest) > 0 {
		p.t.Fatalf("wanted the end, got %q, %v", rest, err)
	}
}

// echo answers with the arguments, or with an error of the class they name.
func echo(_ context.Context, name string, args *qmp.Object) (any, error) {
	switch name {
	case "echo":
		return args, nil
	case "void":
		return nil, nil
	case "plain-error":
		return nil, errors.New("it broke")
	case "class-error":
		return nil, qmp.ClassErrorf(qmp.DeviceNotActive, "Block job 'j' not found")
	}
	return nil, qmp.ErrCommandNotFound(name)
}

const greeting = `{"QMP": {"version": {"qemu": {"major": 11, "minor": 1, "micro": 3}, "package": "test"}, "capabilities": ["oob"]}}`

func TestDialogue(t *testing.T) {
	_, path := start(t, Config{Commands: echo}, ListenerOptions{})
	p := dial(t, path)
	p.want(greeting)
	p.ask(`{"execute": "echo", "id": 1}`, `{"id": 1, "error": {"class": "CommandNotFound", "desc": "Expecting capabilities negotiation with 'qmp_capabilities'"}}`)
	p.ask(`{"execute": "qmp_capabilities", "arguments": {"enable": ["telepathy"]}}`, `{"error": {"class": "GenericError", "desc": "Parameter 'enable[0]' does not accept value 'telepathy'"}}`)
	p.ask(`{"execute": "qmp_capabilities", "arguments": {"bogus": 1}}`, `{"error": {"class": "GenericError", "desc": "Parameter 'bogus' is unexpected"}}`)
	p.ask(`{"execute": "echo"}`, `{"error": {"class": "CommandNotFound", "desc": "Expecting capabilities negotiation with 'qmp_capabilities'"}}`)
	p.ask(`{"execute": "qmp_capabilities", "arguments": {"enable": []}, "id": null}`, `{"return": {}, "id": null}`)
	p.ask(`{"execute": "qmp_capabilities"}`, `{"error": {"class": "CommandNotFound", "desc": "Capabilities negotiation is already complete, command ignored"}}`)
	p.ask(`{"execute": "void"}`, `{"return": {}}`)
	p.ask(`{"execute": "echo", "arguments": {"a": [1, 2.5, null, true, "ä😀"]}, "id": {"x": [18446744073709551615]}}`,
		`{"return": {"a": [1, 2.5, null, true, "\u00E4\uD83D\uDE00"]}, "id": {"x": [18446744073709551615]}}`)
	p.ask(`{"execute": "plain-error", "id": ""}`, `{"id": "", "error": {"class": "GenericError", "desc": "it broke"}}`)
	p.ask(`{"execute": "class-error"}`, `{"error": {"class": "DeviceNotActive", "desc": "Block job 'j' not found"}}`)
	p.ask(`{"execute": ""}`, `{"error": {"class": "CommandNotFound", "desc": "The command  has not been found"}}`)
	for text, desc := range map[string]string{
		`42`:                               "QMP input must be a JSON object",
		`{}`:                               "QMP input lacks member 'execute'",
		`{"foo": 1}`:                       "QMP input member 'foo' is unexpected",
		`{"execute": 1}`:                   "QMP input member 'execute' must be a string",
		`{"execute": "void", "extra": 1}`:  "QMP input member 'extra' is unexpected",
		`{"exec-oob": "void"}`:             "QMP input member 'exec-oob' is unexpected",
		`{"execute": "x", "arguments": 1}`: "QMP input member 'arguments' must be an object",
	} {
		p.ask(text, `{"error": {"class": "GenericError", "desc": "`+desc+`"}}`)
	}
}

func TestMalformedInput(t *testing.T) {
	_, path := start(t, Config{Commands: echo}, ListenerOptions{})
	p := negotiated(t, path)
	p.ask(`}`, `{"error": {"class": "GenericError", "desc": "2:1: JSON parse error, expecting value"}}`)
	p.ask(`{"execute" "void"}`, `{"error": {"class": "GenericError", "desc": "3:12: JSON parse error, expecting ':'"}}`)
	p.ask(`{"execute": query-version}`, `{"error": {"class": "GenericError", "desc": "4:13: JSON parse error, invalid keyword 'query'"}}`)
	p.want(`{"error": {"class": "GenericError", "desc": "4:26: JSON parse error, expecting value"}}`)
	p.ask(`{"execute": "void", "id": 1}`, `{"return": {}, "id": 1}`)
	p.ask("\xff"+`{"execute": "void", "id": 2}`, `{"error": {"class": "GenericError", "desc": "6:1: JSON parse error, stray '\\xff'"}}`)
	p.want(`{"return": {}, "id": 2}`)
}

func TestEndlessLine(t *testing.T) {
	_, path := start(t, Config{Commands: echo}, ListenerOptions{})
	p := negotiated(t, path)
	p.send(`{"execute": "`)
	block := strings.Repeat("x", 1<<20)
	for range 100 {
		p.send(block)
	}
	if got := p.line(); !strings.Contains(got, "JSON token size limit exceeded") {
		t.Fatal(got)
	}
	p.send("\n" + `{"execute": "void", "id": 1}`)
	p.want(`{"return": {}, "id": 1}`)
}

func TestPipelined(t *testing.T) {
	_, path := start(t, Config{Commands: echo}, ListenerOptions{})
	p := negotiated(t, path)
	p.send(`{"execute":"void","id":1}{"execute":"echo","arguments":{"a":1},"id":2} {"execute":"nope","id":3}`)
	p.want(`{"return": {}, "id": 1}`)
	p.want(`{"return": {"a": 1}, "id": 2}`)
	p.want(`{"id": 3, "error": {"class": "CommandNotFound", "desc": "The command nope has not been found"}}`)
	// Far more than fits into any buffer on the way, answered before it is
	// all sent, so that both sides have to take turns.
	const n = 20000
	go func() {
		for range n {
			io.WriteString(p, `{"execute":"echo","arguments":{"some":"more text than just a few bytes"}}`)
		}
	}()
	for range n {
		p.want(`{"return": {"some": "more text than just a few bytes"}}`)
	}
}

// TestCloseAtOnce checks that commands that arrived are executed although the
// client has gone.
func TestCloseAtOnce(t *testing.T) {
	var ran atomic.Int32
	done := make(chan struct{})
	_, path := start(t, Config{Commands: func(context.Context, string, *qmp.Object) (any, error) {
		if ran.Add(1) == 3 {
			close(done)
		}
		return nil, nil
	}}, ListenerOptions{})
	p := negotiated(t, path)
	p.send(strings.Repeat(`{"execute": "count"}`, 3))
	p.Close()
	<-done
}

func TestOOB(t *testing.T) {
	_, path := start(t, Config{Commands: echo}, ListenerOptions{})
	p := dial(t, path)
	p.line()
	p.ask(`{"execute": "qmp_capabilities", "arguments": {"enable": ["oob"]}}`, `{"return": {}}`)
	p.ask(`{"exec-oob": "query-jobs", "id": 1}`, `{"id": 1, "error": {"class": "GenericError", "desc": "The command query-jobs does not support OOB"}}`)
	p.ask(`{"exec-oob": "nope", "id": 2}`, `{"id": 2, "error": {"class": "CommandNotFound", "desc": "The command nope has not been found"}}`)
	p.ask(`{"execute": "void", "exec-oob": "void"}`, `{"error": {"class": "GenericError", "desc": "QMP input member 'execute' clashes with 'exec-oob'"}}`)
	p.ask(`{"execute": "void"}`, `{"return": {}}`)
}

func TestPretty(t *testing.T) {
	s, path := start(t, Config{Commands: echo}, ListenerOptions{Pretty: true})
	p := dial(t, path)
	for range 15 {
		p.line()
	}
	p.send(`{"execute": "qmp_capabilities"}`)
	for _, l := range []string{"{", `    "return": {`, "    }", "}"} {
		p.want(l)
	}
	s.events.now = func() time.Time { return time.Unix(12, 345678901) }
	s.Emit(&api.BlockExportDeletedEvent{ID: "e"})
	for _, l := range []string{"{", `    "timestamp": {`, `        "seconds": 12,`, `        "microseconds": 345678`, "    },",
		`    "event": "BLOCK_EXPORT_DELETED",`, `    "data": {`, `        "id": "e"`, "    }", "}"} {
		p.want(l)
	}
}

// TestOrder checks what comes before and after a reply.
func TestOrder(t *testing.T) {
	var s *Server
	after := make(chan struct{})
	commands := func(ctx context.Context, name string, _ *qmp.Object) (any, error) {
		s.Emit(&api.BlockExportDeletedEvent{ID: "before-" + name})
		AfterReply(context.WithValue(ctx, "key", "value"), func() { s.Emit(&api.BlockExportDeletedEvent{ID: "after-" + name}) })
		AfterReply(ctx, func() { after <- struct{}{} })
		if name == "fail" {
			return nil, errors.New("no")
		}
		return nil, nil
	}
	s, path := start(t, Config{Commands: commands}, ListenerOptions{})
	s.events.now = func() time.Time { return time.Unix(1, 2000) }
	event := func(id string) string {
		return `{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "BLOCK_EXPORT_DELETED", "data": {"id": "` + id + `"}}`
	}
	stranger := dial(t, path)
	stranger.line()
	other := negotiated(t, path)
	p := negotiated(t, path)
	for _, name := range []string{"work", "fail"} {
		p.send(`{"execute": "` + name + `"}`)
		p.want(event("before-" + name))
		// The reply must be on its way while what follows it still runs.
		if name == "fail" {
			p.want(`{"error": {"class": "GenericError", "desc": "no"}}`)
		} else {
			p.want(`{"return": {}}`)
		}
		p.want(event("after-" + name))
		<-after
		other.want(event("before-" + name))
		other.want(event("after-" + name))
	}
	// Who has not negotiated gets no events, not even later.
	stranger.ask(`{"execute": "qmp_capabilities"}`, `{"return": {}}`)
	s.Emit(&api.BlockExportDeletedEvent{ID: "late"})
	stranger.want(event("late"))
}

func TestAfterReplyWithoutCommand(t *testing.T) {
	ran := false
	AfterReply(context.Background(), func() { ran = true })
	if !ran {
		t.Error("it did not run")
	}
}

// TestRoundRobin checks that commands never overlap, and that a session with
// a long pipeline does not keep another one waiting.
func TestRoundRobin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var running atomic.Int32
		var order []string
		gate := make(chan struct{})
		s := New(Config{Commands: func(_ context.Context, name string, _ *qmp.Object) (any, error) {
			if running.Add(1) != 1 {
				t.Error("commands overlap")
			}
			<-gate
			order = append(order, name)
			running.Add(-1)
			return nil, nil
		}})
		connect := func(commands string) net.Conn {
			near, far := net.Pipe()
			go s.ServeConn(far, ListenerOptions{})
			go io.Copy(io.Discard, near)
			go io.WriteString(near, `{"execute": "qmp_capabilities"}`+commands)
			return near
		}
		a := connect(strings.Repeat(`{"execute": "a"}`, 4))
		synctest.Wait() // the first a runs
		b := connect(`{"execute": "b"}{"execute": "b"}`)
		synctest.Wait() // the first b waits
		for range 6 {
			gate <- struct{}{}
			synctest.Wait()
		}
		if got := strings.Join(order, ""); got != "ababaa" {
			t.Errorf("order %s", got)
		}
		a.Close()
		b.Close()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
}

// TestDropsWhoDoesNotRead checks that events for a client that does not read
// are bounded, that the client is dropped with one line in the log, and that
// others do not notice.
func TestDropsWhoDoesNotRead(t *testing.T) {
	var lines countingHook
	log := logrus.New()
	log.SetOutput(io.Discard)
	log.AddHook(&lines)
	s, path := start(t, Config{Commands: echo, MaxOutput: 10000, Log: logrus.NewEntry(log)}, ListenerOptions{})
	deaf, other := negotiated(t, path), negotiated(t, path)
	id := strings.Repeat("x", 1000)
	for i := 0; lines.n.Load() == 0; i++ {
		if i == 10000 {
			t.Fatal("10 MB of events wait for a client")
		}
		s.Emit(&api.BlockExportDeletedEvent{ID: id})
		other.line() // the other one is never far behind
	}
	s.Emit(&api.BlockExportDeletedEvent{ID: "the-last"})
	if got := other.line(); !strings.Contains(got, "the-last") {
		t.Error(got)
	}
	if n := lines.n.Load(); n != 1 {
		t.Errorf("%d lines in the log", n)
	}
	if rest, err := io.ReadAll(deaf.in); err != nil {
		t.Errorf("%v after %d bytes", err, len(rest))
	} else if strings.Contains(string(rest), "the-last") {
		t.Error("the client was not dropped")
	}
}

type countingHook struct{ n atomic.Int32 }

func (*countingHook) Levels() []logrus.Level { return logrus.AllLevels }
func (h *countingHook) Fire(*logrus.Entry) error {
	h.n.Add(1)
	return nil
}

// TestQuit checks the end as a daemon does it: events, then the reply, then
// the connection closes, for the other clients as well; nothing that was sent
// after quit is executed, and nothing that was written is lost to a reset.
func TestQuit(t *testing.T) {
	var s *Server
	stop := make(chan struct{})
	commands := func(ctx context.Context, name string, _ *qmp.Object) (any, error) {
		if name != "quit" {
			t.Errorf("%s was executed", name)
			return nil, nil
		}
		for range 100 {
			s.Emit(&api.BlockExportDeletedEvent{ID: "e"})
		}
		s.StopCommands()
		AfterReply(ctx, func() { close(stop) })
		return nil, nil
	}
	s, path := start(t, Config{Commands: commands}, ListenerOptions{})
	p, other := negotiated(t, path), negotiated(t, path)
	p.send(`{"execute": "quit"}` + strings.Repeat(`{"execute": "more"}`, 1000))
	<-stop
	if err := s.Shutdown(context.Background()); err != nil {
		t.Fatal(err)
	}
	for range 100 {
		if got := p.line(); !strings.Contains(got, "BLOCK_EXPORT_DELETED") {
			t.Fatal(got)
		}
		other.line()
	}
	p.want(`{"return": {}}`)
	p.wantEOF()
	other.wantEOF()
	if _, err := net.Dial("unix", path); err == nil {
		t.Error("the socket still accepts")
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the path is still there: %v", err)
	}
	if err := s.Serve(nilListener{}, ListenerOptions{}); err != ErrClosed {
		t.Errorf("Serve afterwards: %v", err)
	}
}

type nilListener struct{ net.Listener }

func (nilListener) Close() error { return nil }

// TestShutdownDeadline checks that neither a command that hangs nor a client
// that does not read can hold up the end.
func TestShutdownDeadline(t *testing.T) {
	hanging := make(chan struct{})
	s, path := start(t, Config{Commands: func(ctx context.Context, name string, _ *qmp.Object) (any, error) {
		close(hanging)
		<-ctx.Done()
		return nil, ctx.Err()
	}}, ListenerOptions{})
	deaf, p := negotiated(t, path), negotiated(t, path)
	for range 1000 {
		s.Emit(&api.BlockExportDeletedEvent{ID: strings.Repeat("x", 1000)})
	}
	p.send(`{"execute": "hang"}`)
	<-hanging
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if err := s.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Shutdown: %v", err)
	}
	io.Copy(io.Discard, deaf)
}

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
