// SPDX-License-Identifier: Apache-2.0

package web

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
)

// What all browsers together can cause.
const (
	maxConnections = 64
	maxStreams     = 32
	headerTime     = 10 * time.Second // for a request's header
	replyTime      = 30 * time.Second // for what is no stream
	idleTime       = 60 * time.Second
	maxHeader      = 16 << 10
	// stopTime is how long a stop waits for replies. A connection on which nothing has come yet counts as one, for net/http, and
	// browsers open such. net/http itself takes 500 ms to end one on which something came that nobody read.
	stopTime = 700 * time.Millisecond
)

// Config is what a server needs.
type Config struct {
	Options
	// Dial makes a connection to the daemon's monitor.
	Dial func() net.Conn
	Log  *logrus.Entry
}

// Server serves the page. Make one with New, hang in what else it is to serve, and Start it.
type Server struct {
	config Config
	hosts  hosts
	mux    *http.ServeMux
	http   *http.Server
	cancel context.CancelFunc
	addr   net.Addr
	work   sync.WaitGroup

	board   *board
	monitor *monitor
	streams chan struct{} // one token per stream
	token   token         // with --web-control
}

// New makes a server that does not listen yet.
func New(c Config) (*Server, error) {
	if err := c.Check(); err != nil {
		return nil, err
	}
	s := &Server{config: c, mux: http.NewServeMux(), board: newBoard(), monitor: newMonitor(), streams: make(chan struct{}, maxStreams)}
	if err := s.addPage(); err != nil {
		return nil, err
	}
	s.Handle("GET /api/stream", http.HandlerFunc(s.serveStream))
	s.Handle("POST /api/control", http.HandlerFunc(s.serveControl))
	return s, nil
}

// Handle has requests that match a pattern of [http.ServeMux] answered by h, behind the guard. It is called before Start.
func (s *Server) Handle(pattern string, h http.Handler) { s.mux.Handle(pattern, h) }

// Start listens, and serves from now on.
func (s *Server) Start() error {
	l, err := s.config.listen()
	if err != nil {
		return err
	}
	if s.config.Control {
		var text string
		if s.token, text, err = readToken(s.config.Token); err != nil {
			return errors.Join(err, l.Close())
		}
		if text != "" {
			s.config.Log.WithField("token", text).Warn("web page: this token controls jobs; --web-token keeps it in a file instead")
		}
	}
	s.serve(l)
	return nil
}

// serve serves what comes to a listener.
func (s *Server) serve(l net.Listener) {
	s.addr = l.Addr()
	s.hosts = newHosts(&s.config.Options, l.Addr())
	ctx, cancel := context.WithCancel(context.Background())
	s.cancel = cancel
	s.http = &http.Server{
		Handler:           s.guard(s.mux),
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ReadHeaderTimeout: headerTime, WriteTimeout: replyTime, IdleTimeout: idleTime, MaxHeaderBytes: maxHeader,
		ErrorLog: log.New(warner{s.config.Log}, "", 0),
	}
	s.config.Log.WithField("addr", l.Addr().String()).Info("web page")
	s.work.Go(func() { s.sample(ctx) })
	s.work.Go(func() {
		if err := s.http.Serve(newBounded(l, maxConnections)); !errors.Is(err, http.ErrServerClosed) {
			s.config.Log.WithField("err", err).Error("web page ended")
		}
	})
}

// Addr is where the server listens.
func (s *Server) Addr() net.Addr { return s.addr }

// Stop ends all connections, those with a reply under way after a moment or with ctx, and waits for what the server started. It may be
// called without Start.
func (s *Server) Stop(ctx context.Context) error {
	if s == nil || s.http == nil {
		return nil
	}
	s.cancel()
	ctx, cancel := context.WithTimeout(ctx, stopTime)
	defer cancel()
	err := s.http.Shutdown(ctx)
	if err != nil { // a handler that others hung in does not end: its connection does
		err = s.http.Close()
	}
	s.work.Wait()
	if err != nil {
		return fmt.Errorf("web page: %w", err)
	}
	return nil
}

// warner writes lines of package net/http to the log.
type warner struct{ log *logrus.Entry }

func (w warner) Write(p []byte) (int, error) {
	w.log.WithField("err", strings.TrimSpace(string(p))).Warn("web page")
	return len(p), nil
}

// bounded is a listener that has at most so many connections. More wait in the queue of the socket.
type bounded struct {
	net.Listener
	slots  chan struct{}
	closed chan struct{}
	once   sync.Once
}

func newBounded(l net.Listener, most int) *bounded {
	return &bounded{Listener: l, slots: make(chan struct{}, most), closed: make(chan struct{})}
}

func (l *bounded) Accept() (net.Conn, error) {
	select {
	case l.slots <- struct{}{}:
	case <-l.closed:
		return nil, net.ErrClosed
	}
	conn, err := l.Listener.Accept()
	if err != nil {
		<-l.slots
		return nil, err
	}
	return &slotted{Conn: conn, free: sync.OnceFunc(func() { <-l.slots })}, nil
}

func (l *bounded) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

type slotted struct {
	net.Conn
	free func()
}

func (c *slotted) Close() error {
	defer c.free()
	return c.Conn.Close()
}
