// SPDX-License-Identifier: Apache-2.0

package server

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/blkmirror/blkmirror/qmp"
	"github.com/blkmirror/blkmirror/qmp/api"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

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
	c.SetDeadline(time.Now().Add(time.Minute))
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
