// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/sirupsen/logrus"

	"github.com/blkmirror/blkmirror/qmp/server"
)

// Path is where metrics are served.
const Path = "/metrics"

const (
	maxConnections = 16
	maxScrapes     = 4 // at a time
	scrapeTime     = 10 * time.Second
	// stopTime is how long a stop waits for scrapes. A connection on which nothing has come yet counts as one, for net/http.
	stopTime = 250 * time.Millisecond
)

// Handler answers scrapes.
func Handler(s Source, log *logrus.Entry) http.Handler {
	r := prometheus.NewRegistry()
	r.MustRegister(collector{s}, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return promhttp.HandlerFor(r, promhttp.HandlerOpts{ErrorLog: errorLog{log}, ErrorHandling: promhttp.ContinueOnError,
		MaxRequestsInFlight: maxScrapes, Timeout: scrapeTime})
}

type errorLog struct{ log *logrus.Entry }

func (e errorLog) Println(v ...any) { e.log.WithField("err", fmt.Sprint(v...)).Warn("metrics") }

func (e errorLog) Write(p []byte) (int, error) {
	e.Println(strings.TrimSpace(string(p)))
	return len(p), nil
}

// CheckAddress says whether metrics may be served at an address: of a local socket, or one that only this host reaches unless remote.
func CheckAddress(address string, remote bool) error {
	if strings.Contains(address, "/") {
		if remote {
			return errors.New("--metrics-remote is for TCP")
		}
		return nil
	}
	host, _, err := net.SplitHostPort(address)
	switch ip := net.ParseIP(host); {
	case err != nil:
		return fmt.Errorf("--metrics %s: expects HOST:PORT, or the path of a socket with a / in it", address)
	case remote || host == "localhost" || ip != nil && ip.IsLoopback():
		return nil
	}
	return fmt.Errorf("--metrics %s: expects an address that only this host reaches, such as 127.0.0.1 or [::1]; --metrics-remote takes any",
		address)
}

// Server serves metrics and nothing else.
type Server struct {
	http *http.Server
	addr net.Addr
	done chan struct{}
}

// Serve begins to serve metrics at an address, see CheckAddress.
func Serve(address string, remote bool, h http.Handler, to *logrus.Entry) (*Server, error) {
	if err := CheckAddress(address, remote); err != nil {
		return nil, err
	}
	l, err := listen(address)
	if err != nil {
		return nil, fmt.Errorf("--metrics %s: %w", address, err)
	}
	if tcp, ok := l.Addr().(*net.TCPAddr); ok && !remote && !tcp.IP.IsLoopback() {
		return nil, errors.Join(fmt.Errorf("--metrics %s: '%s' is not an address that only this host reaches", address, tcp), l.Close())
	}
	mux := http.NewServeMux()
	mux.Handle("GET "+Path, h)
	var handler http.Handler = mux
	if _, tcp := l.Addr().(*net.TCPAddr); tcp && !remote {
		handler = local(mux)
	}
	s := &Server{addr: l.Addr(), done: make(chan struct{}), http: &http.Server{Handler: handler, ReadTimeout: scrapeTime,
		WriteTimeout: 2 * scrapeTime, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10, ConnState: bounded(maxConnections),
		ErrorLog: log.New(errorLog{to}, "", 0)}}
	to.WithField("addr", l.Addr().String()).Info("metrics served")
	go func() {
		defer close(s.done)
		if err := s.http.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			to.WithField("err", err).Error("metrics ended")
		}
	}()
	return s, nil
}

// local takes requests to this host by its address or as localhost only. A page in a browser here, whose name was made to lead to this host
// after it was loaded (DNS rebinding), comes with that name.
func local(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name := r.Host
		if host, _, err := net.SplitHostPort(name); err == nil {
			name = host
		}
		name = strings.Trim(name, "[]")
		if net.ParseIP(name) == nil && !strings.EqualFold(name, "localhost") {
			http.Error(w, "metrics are served to this host, by its address or as localhost", http.StatusMisdirectedRequest)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// bounded closes connections beyond so many. Prometheus needs one.
func bounded(most int64) func(net.Conn, http.ConnState) {
	var open atomic.Int64
	return func(c net.Conn, s http.ConnState) {
		switch s {
		case http.StateNew:
			if open.Add(1) > most {
				_ = c.Close()
			}
		case http.StateClosed, http.StateHijacked:
			open.Add(-1)
		}
	}
}

func listen(address string) (net.Listener, error) {
	if strings.Contains(address, "/") {
		return server.Listen(address)
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	return server.ListenTCP(host, port)
}

// Addr is where metrics are served.
func (s *Server) Addr() net.Addr { return s.addr }

// Stop ends the server and its connections, those in a scrape after a moment or with ctx. A nil Server has nothing to stop.
func (s *Server) Stop(ctx context.Context) error {
	if s == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, stopTime)
	defer cancel()
	err := s.http.Shutdown(ctx)
	if err != nil {
		err = s.http.Close()
	}
	<-s.done
	return err
}
