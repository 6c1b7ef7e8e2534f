// SPDX-License-Identifier: Apache-2.0

package client

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/blkmirror/blkmirror/qmp"
	"github.com/blkmirror/blkmirror/qmp/api"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// script is a server that says what a test tells it to.
type script struct {
	t    *testing.T
	conn net.Conn
	in   *bufio.Reader
}

// serve accepts one client, plays the other side of it in a goroutine, and
// returns where to connect to. The test waits for the goroutine.
func serve(t *testing.T, play func(*script)) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "qmp")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	var done sync.WaitGroup
	done.Go(func() {
		defer l.Close()
		conn, err := l.Accept()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(20 * time.Second))
		play(&script{t, conn, bufio.NewReader(conn)})
	})
	t.Cleanup(done.Wait)
	return path
}

func (s *script) say(text string) { io.WriteString(s.conn, text+"\r\n") }

// hear checks the next line from the client.
func (s *script) hear(want string) {
	got, err := s.in.ReadString('\n')
	if strings.TrimSuffix(got, "\r\n") != want && strings.TrimSuffix(got, "\n") != want {
		s.t.Errorf("heard %q, %v, want %q", got, err, want)
	}
}

// gone waits until the client has closed the connection.
func (s *script) gone() { io.Copy(io.Discard, s.in) }

func (s *script) greet() {
	s.say(`{"QMP": {"version": {"qemu": {"micro": 3, "minor": 1, "major": 11}, "package": "p"}, "capabilities": ["oob"]}}`)
	s.hear(`{"execute": "qmp_capabilities"}`)
	s.say(`{"return": {}}`)
}

func connect(t *testing.T, path string, opts Options) *Client {
	t.Helper()
	c, err := Dial(t.Context(), "unix", path, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestExecute(t *testing.T) {
	c := connect(t, serve(t, func(s *script) {
		s.greet()
		s.hear(`{"execute": "query-jobs", "id": 1}`)
		s.say(`{"return": [{"id": "m", "type": "teleport", "status": "ready", "current-progress": 1, "total-progress": 2, "new": 3}], "id": 1}`)
		s.hear(`{"execute": "job-pause", "arguments": {"id": "m"}, "id": 2}`)
		s.say(`{"id": 2, "error": {"class": "GenericError", "desc": "Job not found"}}`)
		s.hear(`{"execute": "x", "arguments": {"a":1}, "id": 3}`)
		s.say(`{"return": [1, "b"], "id": 3}`)
		s.hear(`{"execute": "x", "arguments": {"o": []}, "id": 4}`)
		s.say(`{"return": {"qemu": {"micro": 1, "minor": 2, "major": 3}, "package": ""}, "id": 4}`)
		s.hear(`{"execute": "x", "id": 5}`)
		s.say(`{"return": 7, "id": 5}`)
		s.gone()
	}), Options{})
	ctx := t.Context()
	if v := c.Version(); v.QEMU != (api.VersionTriple{Major: 11, Minor: 1, Micro: 3}) || v.Package != "p" {
		t.Errorf("version %+v", v)
	}
	var jobs []api.JobInfo
	if err := c.Execute(ctx, "query-jobs", nil, &jobs); err != nil || len(jobs) != 1 || jobs[0].Type != "teleport" || jobs[0].TotalProgress != 2 {
		t.Errorf("got %+v, %v", jobs, err)
	}
	err := c.Execute(ctx, "job-pause", &api.JobPauseArguments{ID: "m"}, nil)
	if refused, ok := errors.AsType[*qmp.Error](err); !ok || refused.Class != qmp.GenericError || refused.Desc != "Job not found" {
		t.Errorf("got %v", err)
	}
	var v any
	if err := c.Execute(ctx, "x", map[string]int{"a": 1}, &v); err != nil || fmt.Sprint(v) != "[1 b]" {
		t.Errorf("got %v, %v", v, err)
	}
	var version api.VersionInfo
	if err := c.Execute(ctx, "x", qmp.NewObject(qmp.Member{Name: "o", Value: []any{}}), &version); err != nil || version.QEMU.Major != 3 {
		t.Errorf("got %+v, %v", version, err)
	}
	for _, bad := range []any{5, []int{1}, func() {}} {
		if err := c.Execute(ctx, "x", bad, nil); err == nil {
			t.Errorf("arguments %T were accepted", bad)
		}
	}
	if err := c.Execute(ctx, "x", nil, &jobs); err == nil || !strings.Contains(err.Error(), "result of x") {
		t.Errorf("got %v", err)
	}
	c.Close()
	if err := c.Execute(ctx, "x", nil, nil); !errors.Is(err, ErrClosed) {
		t.Errorf("on a closed client: %v", err)
	}
}

// TestConcurrent checks that replies reach their commands.
func TestConcurrent(t *testing.T) {
	const n = 50
	c := connect(t, serve(t, func(s *script) {
		s.greet()
		r := qmp.NewReader(s.in)
		for range n {
			v, err := r.Next()
			if err != nil {
				s.t.Error(err)
				return
			}
			id, _ := v.(*qmp.Object).Get("id")
			args, _ := v.(*qmp.Object).Get("arguments")
			s.say(string(qmp.Encode(qmp.NewObject(qmp.Member{Name: "return", Value: args}, qmp.Member{Name: "id", Value: id}))))
		}
		s.gone()
	}), Options{})
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() {
			var got struct{ N int }
			if err := c.Execute(t.Context(), "echo", map[string]int{"n": i}, &got); err != nil || got.N != i {
				t.Errorf("%d: got %v, %v", i, got, err)
			}
		})
	}
	all.Wait()
}

func TestEventsOverflow(t *testing.T) {
	event := func(id string) string {
		return `{"timestamp": {"seconds": 5, "microseconds": 250000}, "event": "BLOCK_EXPORT_DELETED", "data": {"id": "` + id + `"}}`
	}
	next := make(chan struct{})
	c := connect(t, serve(t, func(s *script) {
		s.greet()
		for _, id := range []string{"a", "b", "c", "d"} {
			s.say(event(id))
		}
		s.hear(`{"execute": "x", "id": 1}`)
		s.say(`{"return": {}, "id": 1}`)
		<-next
		s.say(event("e"))
	}), Options{EventBuffer: 2})
	if err := c.Execute(t.Context(), "x", nil, nil); err != nil {
		t.Fatal(err)
	}
	if n := c.Lost(); n != 2 {
		t.Errorf("%d events lost, not 2", n)
	}
	take := func(id string, lost uint64) {
		t.Helper()
		e := <-c.Events()
		v, err := api.DecodeEvent(e.Name, e.Data)
		if err != nil || v.(*api.BlockExportDeletedEvent).ID != id || e.Lost != lost || !e.Time.Equal(time.Unix(5, 250e6)) {
			t.Errorf("got %+v, %v", e, err)
		}
	}
	take("a", 0)
	take("b", 0)
	close(next)
	take("e", 2)
	if _, ok := <-c.Events(); ok {
		t.Error("events after the end")
	}
	if n := c.Lost(); n != 0 {
		t.Errorf("%d events lost", n)
	}
}

// TestCancel checks that giving up on one command does not disturb the next.
func TestCancel(t *testing.T) {
	heard, cancelled := make(chan struct{}), make(chan struct{})
	c := connect(t, serve(t, func(s *script) {
		s.greet()
		s.hear(`{"execute": "slow", "id": 1}`)
		close(heard)
		<-cancelled
		s.say(`{"return": {}, "id": 1}`)
		s.hear(`{"execute": "fast", "id": 2}`)
		s.say(`{"return": 5, "id": 2}`)
		s.gone()
	}), Options{})
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-heard
		cancel()
	}()
	if err := c.Execute(ctx, "slow", nil, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	close(cancelled)
	var n int
	if err := c.Execute(t.Context(), "fast", nil, &n); err != nil || n != 5 {
		t.Errorf("got %d, %v", n, err)
	}
}

// TestCancelWrite checks that a server that does not read cannot hold up a
// command whose context ends.
func TestCancelWrite(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	stop := make(chan struct{})
	c := connect(t, serve(t, func(s *script) {
		s.greet()
		s.in.ReadByte() // the command is on its way
		cancel()
		<-stop
	}), Options{})
	defer close(stop)
	args := map[string]string{"long": strings.Repeat("x", 10<<20)}
	if err := c.Execute(ctx, "x", args, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if err := c.Execute(t.Context(), "x", nil, nil); err == nil {
		t.Error("half a command was followed by another one")
	}
}

// TestServerMisbehaves checks that every end of a connection is an error of
// the commands that wait.
func TestServerMisbehaves(t *testing.T) {
	for _, c := range []struct{ name, says, want string }{
		{"closes", "", "the server closed it"},
		{"stops in a message", `{"return"`, "unexpected EOF"},
		{"malformed", "}", "expecting value"},
		{"not an object", "5", "not an object"},
		{"unknown id", `{"return": {}, "id": 7}`, "reply with unknown id 7"},
		{"no id", `{"return": {}}`, "reply with unknown id null"},
		{"neither", `{"id": 1}`, "Parameter 'event' is missing"},
		{"strange error", `{"id": 1, "error": {"class": 1}}`, "expected: string"},
		{"refuses the message", `{"error": {"class": "GenericError", "desc": "JSON parse error"}}`, "JSON parse error"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cl := connect(t, serve(t, func(s *script) {
				s.greet()
				s.hear(`{"execute": "x", "id": 1}`)
				s.say(c.says)
			}), Options{})
			if err := cl.Execute(t.Context(), "x", nil, nil); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %s", err, c.want)
			}
			if _, ok := <-cl.Events(); ok {
				t.Error("an event")
			}
		})
	}
}

func TestNegotiationFails(t *testing.T) {
	for _, c := range []struct{ name, says, then, want string }{
		{"no greeting", "", "", "the server closed it"},
		{"not QMP", `{"hello": 1}`, "", "Parameter 'QMP' is missing"},
		{"refused", `{"QMP": {"version": {"qemu": {"micro": 3, "minor": 1, "major": 11}, "package": "p"}, "capabilities": []}}`,
			`{"error": {"class": "CommandNotFound", "desc": "not now"}}`, "not now"},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := serve(t, func(s *script) {
				s.say(c.says)
				if c.then != "" {
					s.hear(`{"execute": "qmp_capabilities"}`)
					s.say(c.then)
				}
			})
			if _, err := Dial(t.Context(), "unix", path, Options{}); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %s", err, c.want)
			}
		})
	}
	t.Run("silence", func(t *testing.T) {
		path := serve(t, func(s *script) { s.gone() })
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		if _, err := Dial(ctx, "unix", path, Options{}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
	})
	if _, err := Dial(t.Context(), "unix", filepath.Join(t.TempDir(), "none"), Options{}); err == nil {
		t.Error("connected to nothing")
	}
}
