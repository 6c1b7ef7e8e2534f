// SPDX-License-Identifier: Apache-2.0

package web

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/sirupsen/logrus"

	"github.com/blkmirror/blkmirror/qmp"
	"github.com/blkmirror/blkmirror/qmp/api"
	"github.com/blkmirror/blkmirror/qmp/server"
)

// rig is a page, with a monitor that answers what the test says, all within a synctest bubble.
type rig struct {
	t       *testing.T
	web     *Server
	monitor *server.Server
	lines   *lines
	mu      struct {
		sync.Mutex
		answers map[string]string // by command, JSON
		asked   []string          // commands with their arguments, those of the sampler left out
	}
}

// lines is a listener without a network.
type lines struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

type nowhere struct{}

func (nowhere) Network() string { return "pipe" }
func (nowhere) String() string  { return "pipe" }

func (l *lines) Addr() net.Addr { return nowhere{} }
func (l *lines) Close() error   { l.once.Do(func() { close(l.closed) }); return nil }
func (l *lines) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *lines) dial(context.Context, string, string) (net.Conn, error) {
	ours, theirs := net.Pipe()
	select {
	case l.conns <- theirs:
		return ours, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

var sampled = map[string]string{
	"x-query-block-graph":     `[{"user": "export", "name": "e", "role": "root", "node-name": "n"}, {"user": "job", "name": "j", "role": "root", "node-name": "n"}]`,
	"query-block-exports":     `[{"id": "e", "type": "nbd", "node-name": "n", "shutting-down": false}]`,
	"x-query-export-clients":  `[{"id": "e", "address": "192.0.2.1:99"}]`,
	"query-jobs":              `[{"id": "j", "type": "mirror", "status": "running", "current-progress": 1, "total-progress": 2, "rate": 5, "dirty-bytes": 1}]`,
	"query-block-jobs":        `[{"type": "mirror", "device": "j", "len": 2, "offset": 1, "busy": true, "paused": false, "speed": 7, "io-status": "ok", "ready": false, "status": "running", "auto-finalize": true, "auto-dismiss": true, "actively-synced": false}]`,
	"query-blockstats":        `[{"node-name": "n", "stats": {"rd_bytes": 10, "wr_bytes": 20, "rd_operations": 1, "wr_operations": 2}}]`,
	"query-named-block-nodes": `[{"node-name": "n", "drv": "raw", "ro": false, "file": "/disk", "image": {"virtual-size": 4096}}]`,
}

// inBubble runs a test with a page.
func inBubble(t *testing.T, o Options, test func(*rig)) {
	synctest.Test(t, func(t *testing.T) {
		log := logrus.New()
		log.SetOutput(io.Discard)
		r := &rig{t: t, lines: &lines{conns: make(chan net.Conn), closed: make(chan struct{})}}
		r.mu.answers = map[string]string{}
		r.monitor = server.New(server.Config{Version: api.VersionInfo{}, Log: logrus.NewEntry(log), Commands: r.answer})
		var sessions sync.WaitGroup
		var err error
		o.Address = "127.0.0.1:0"
		r.web, err = New(Config{Options: o, Log: logrus.NewEntry(log), Dial: func() net.Conn {
			ours, theirs := net.Pipe()
			sessions.Go(func() { _ = r.monitor.ServeConn(theirs, server.ListenerOptions{}) })
			return ours
		}})
		must(t, err)
		r.web.Handle("GET /metrics", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hung in") }))
		r.web.token = tokenOf("secret of the test")
		r.web.serve(r.lines)
		test(r)
		must(t, r.web.Stop(context.Background()))
		must(t, r.monitor.Shutdown(context.Background()))
		sessions.Wait()
	})
}

func (r *rig) answer(_ context.Context, name string, args *qmp.Object) (any, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	text, ok := r.mu.answers[name]
	if !ok {
		text, ok = sampled[name]
	}
	if sampled[name] == "" {
		r.mu.asked = append(r.mu.asked, name+" "+string(qmp.Encode(args)))
	}
	if !ok {
		return nil, qmp.Errorf("no answer to %s", name)
	}
	return qmp.NewReader(strings.NewReader(text + "\n")).Next()
}

func (r *rig) set(command, answer string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mu.answers[command] = answer
}

func (r *rig) asked() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.mu.asked)
}

// do sends a request over a connection of its own.
func (r *rig) do(method, path, body string, headers ...string) *http.Response {
	r.t.Helper()
	q, err := http.NewRequest(method, "http://localhost"+path, strings.NewReader(body))
	must(r.t, err)
	for i := 0; i+1 < len(headers); i += 2 {
		if headers[i] == "Host" {
			q.Host = headers[i+1]
		}
		q.Header.Set(headers[i], headers[i+1])
	}
	transport := &http.Transport{DialContext: r.lines.dial, DisableKeepAlives: true}
	answer, err := transport.RoundTrip(q)
	must(r.t, err)
	return answer
}

// status is that of a request, with the text of the answer.
func (r *rig) status(method, path, body string, headers ...string) (int, string) {
	r.t.Helper()
	answer := r.do(method, path, body, headers...)
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	must(r.t, err)
	return answer.StatusCode, string(text)
}

// events reads a stream of server-sent events until f is content.
func (r *rig) events(path string, f func(name, data string) (enough bool)) {
	r.t.Helper()
	answer := r.do("GET", path, "")
	defer answer.Body.Close()
	if kind := answer.Header.Get("Content-Type"); answer.StatusCode != 200 || kind != "text/event-stream" {
		r.t.Fatalf("%s: status %d, %s", path, answer.StatusCode, kind)
	}
	in := bufio.NewScanner(answer.Body)
	in.Buffer(nil, 16<<20)
	name := ""
	for in.Scan() {
		if after, ok := strings.CutPrefix(in.Text(), "event: "); ok {
			name = after
		} else if data, ok := strings.CutPrefix(in.Text(), "data: "); ok && f(name, data) {
			return
		}
	}
	r.t.Fatalf("%s: the stream ended: %v", path, errors.Join(in.Err()))
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
