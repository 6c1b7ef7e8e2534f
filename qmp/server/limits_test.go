// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/blkmirror/blkmirror/qmp"
)

// One client too many is told so, and there is room again when another leaves.
func TestMaxClients(t *testing.T) {
	const most = 3
	_, path := start(t, Config{MaxClients: most, Commands: refuseAll}, ListenerOptions{})
	var inside []net.Conn
	for range most {
		c, said := firstLine(t, path)
		if !strings.HasPrefix(said, `{"QMP"`) {
			t.Fatalf("greeting: %s", said)
		}
		inside = append(inside, c)
	}
	if _, said := firstLine(t, path); !strings.Contains(said, `"class": "GenericError"`) || !strings.Contains(said, "3 clients") {
		t.Errorf("the fourth was told: %s", said)
	}
	inside[1].Close()
	for range 1000 {
		if _, said := firstLine(t, path); strings.HasPrefix(said, `{"QMP"`) {
			return
		}
	}
	t.Error("there was no room after a client had left")
}

func firstLine(t *testing.T, path string) (net.Conn, string) {
	t.Helper()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	p := make([]byte, 4096)
	n, err := c.Read(p)
	if err != nil {
		t.Fatal(err)
	}
	return c, string(p[:n])
}

func refuseAll(context.Context, string, *qmp.Object) (any, error) { return nil, qmp.Errorf("no") }

// What a client may not say is answered, and the next message is read.
func TestMessageLimits(t *testing.T) {
	for _, c := range []struct {
		limits      qmp.Limits
		ok, refused string
		want        string
	}{
		{qmp.Limits{Bytes: 100}, strings.Repeat("x", 50), strings.Repeat("x", 100), "size limit"},
		{qmp.Limits{Depth: 5}, "[[]]", "[[[[[]]]]]", "depth limit"},
	} {
		_, path := start(t, Config{Limits: c.limits, Commands: refuseAll}, ListenerOptions{})
		conn, _ := firstLine(t, path)
		for _, m := range []struct{ id, want string }{{c.refused, c.want}, {c.ok, `"return"`}} {
			id := m.id
			if id[0] != '[' {
				id = `"` + id + `"`
			}
			if _, err := io.WriteString(conn, `{"execute": "qmp_capabilities", "id": `+id+"}\n"); err != nil {
				t.Fatal(err)
			}
			p := make([]byte, 4096)
			n, err := conn.Read(p)
			if err != nil || !strings.Contains(string(p[:n]), m.want) {
				t.Errorf("%+v: %q, %v", c.limits, p[:n], err)
			}
		}
	}
}

// One that does not prove who it is keeps its place for a while only, and hears nothing.
func TestSecureTakesTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(Config{Commands: refuseAll})
		if err := s.countIn(); err != nil {
			t.Fatal(err)
		}
		client, conn := net.Pipe()
		began := time.Now()
		go func() {
			defer s.countOut()
			s.client(conn, ListenerOptions{Secure: func(ctx context.Context, c net.Conn) (net.Conn, error) {
				<-ctx.Done()
				return nil, ctx.Err()
			}})
		}()
		if n, err := client.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
			t.Errorf("%d bytes, %v", n, err)
		}
		if took := time.Since(began); took != secureTimeout {
			t.Errorf("it took %v", took)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
}

// FuzzSession feeds whole sessions to the server: whatever a client says, each message gets at most one answer, all output is
// lines of JSON, and the session ends with the input.
func FuzzSession(f *testing.F) {
	for _, seed := range []string{
		`{"execute": "qmp_capabilities"}{"execute": "wait"}{"execute": "echo", "arguments": {"a": [1, 2.5, null]}, "id": {"x": "y"}}`,
		`{"execute": "qmp_capabilities", "arguments": {"enable": ["oob"]}}{"exec-oob": "echo", "id": 1}{"execute": "emit"}`,
		`{"execute": "echo"}` + "\xff" + `{"execute": 1}{'execute': 'qmp_capabilities', 'id': 'é\ud800'}[[[`,
		`{"execute": "qmp_capabilities"}{"execute": "fail", "id": []}{"execute": "later"}{"execute": "emit"}{"execute": "stop"}{"execute": "echo"}`,
	} {
		f.Add([]byte(seed), false)
		f.Add([]byte(seed), true)
	}
	f.Fuzz(func(t *testing.T, input []byte, pretty bool) {
		if len(input) > 64<<10 {
			t.Skip("long inputs say nothing new")
		}
		const most = 4 << 20
		var s *Server
		s = New(Config{Limits: qmp.Limits{Bytes: 16 << 10, Depth: 64}, MaxOutput: most, Commands: func(ctx context.Context, name string, args *qmp.Object) (any, error) {
			switch name {
			case "echo":
				return args, nil
			case "emit":
				s.Emit(happened{})
			case "later":
				AfterReply(ctx, func() { s.Emit(happened{}) })
			case "wait":
				return nil, Aside(ctx, func(context.Context) error { return nil })
			case "stop":
				s.StopCommands()
			default:
				return nil, qmp.ErrCommandNotFound(name)
			}
			return nil, nil
		}})
		c := &script{in: strings.NewReader(string(input))}
		if err := s.ServeConn(c, ListenerOptions{Pretty: pretty}); err != nil {
			t.Error(err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		out := c.out.String()
		messages := 0
		for r := qmp.NewReader(strings.NewReader(out)); ; messages++ {
			v, err := r.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatalf("message %d of the output: %v\n%s", messages, err, out)
			}
			if o, ok := v.(*qmp.Object); !ok || o.Len() == 0 {
				t.Fatalf("message %d of the output is %v", messages, v)
			}
		}
		if messages < 1 || messages > 2*len(input)+1 {
			t.Errorf("%d messages for %d bytes", messages, len(input))
		}
	})
}

// happened is an event.
type happened struct{}

func (happened) EventName() string { return "HAPPENED" }
func (happened) EncodeQMP(e *qmp.Encoder) {
	e.BeginObject()
	e.EndObject()
}

// script is a connection on which all input is there already.
type script struct {
	in  io.Reader
	out strings.Builder // one goroutine at a time writes
}

func (s *script) Read(p []byte) (int, error)  { return s.in.Read(p) }
func (s *script) Write(p []byte) (int, error) { return s.out.Write(p) }
func (s *script) Close() error                { return nil }
