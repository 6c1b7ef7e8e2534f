// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/blkmirror/blkmirror/qmp"
	"github.com/blkmirror/blkmirror/qmp/api"
)

// keyOfNobody is a key of a context that nobody asks for.
type keyOfNobody struct{}

// TestOrder checks what comes before and after a reply.
func TestOrder(t *testing.T) {
	var s *Server
	after := make(chan struct{})
	commands := func(ctx context.Context, name string, _ *qmp.Object) (any, error) {
		s.Emit(&api.BlockExportDeletedEvent{ID: "before-" + name})
		AfterReply(context.WithValue(ctx, keyOfNobody{}, "value"), func() { s.Emit(&api.BlockExportDeletedEvent{ID: "after-" + name}) })
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

// TestAside has other commands run while one waits for something, but not before or after that, and not what the session of
// the one asks for next.
func TestAside(t *testing.T) {
	var running atomic.Int32
	away, back := make(chan struct{}), make(chan struct{})
	commands := func(ctx context.Context, name string, _ *qmp.Object) (any, error) {
		if running.Add(1) != 1 {
			t.Error("commands overlap")
		}
		defer running.Add(-1)
		if name != "wait" {
			return nil, nil
		}
		return nil, Aside(context.WithValue(ctx, keyOfNobody{}, "value"), func(ctx context.Context) error {
			running.Add(-1)
			defer running.Add(1)
			away <- struct{}{}
			select {
			case <-back:
				return errors.New("nobody there")
			case <-ctx.Done():
				return nil
			}
		})
	}
	s, path := start(t, Config{Commands: commands}, ListenerOptions{})
	one, other := negotiated(t, path), negotiated(t, path)
	one.send(`{"execute": "wait"} {"execute": "next", "id": 1}`)
	<-away
	for range 3 {
		other.ask(`{"execute": "work"}`, `{"return": {}}`)
	}
	back <- struct{}{}
	one.want(`{"error": {"class": "GenericError", "desc": "nobody there"}}`)
	one.want(`{"return": {}, "id": 1}`)
	one.send(`{"execute": "wait"}`)
	<-away
	s.StopCommands()
	one.want(`{"error": {"class": "GenericError", "desc": "QMP server is shut down"}}`)
}

func TestAsideWithoutCommand(t *testing.T) {
	want := errors.New("of the function")
	if err := Aside(t.Context(), func(context.Context) error { return want }); err != want {
		t.Error(err)
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
