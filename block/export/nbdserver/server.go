// SPDX-License-Identifier: Apache-2.0

package nbdserver

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/budget"
	"github.com/blkmirror/blkmirror/block/export"
	"github.com/blkmirror/blkmirror/block/nbd"
)

// Conn describes a client to [Events].
type Conn struct {
	ID     uint64 // counts from 1
	Remote string // address, "" for a unix socket
	Export string // id of the export, "" before the client has chosen one
}

// Events are called when something happened. Any of them may be nil; they may be called at once.
type Events struct {
	Opened       func(Conn)
	Closed       func(Conn, error) // nil when the client left in good order
	AcceptFailed func(error)
}

// DefaultMaxRequests is how many requests a client can have under way, unless Options say otherwise.
const DefaultMaxRequests = 64

// Options limit the clients of a server.
type Options struct {
	MaxConnections   int           // 0 for any number
	HandshakeTimeout time.Duration // 0 for none

	// MaxRequests and MaxRequest bound what one client can have under way: how many requests, and how many bytes of data
	// one may have; 0 for DefaultMaxRequests and nbd.MaxPayload, which is the most.
	MaxRequests int
	MaxRequest  int64
	// Budget is where the memory for the data of requests comes from; nil for no bound.
	Budget *budget.Budget

	// TLS, unless nil, must be asked for by clients before they see anything.
	TLS *tls.Config
	// Authorize, unless nil, refuses clients that TLS let in. It is called by many goroutines at once.
	Authorize func(tls.ConnectionState) error
}

// Server serves exports of one graph over at most one listener at a time.
type Server struct {
	graph   *block.Graph
	exports *export.Registry
	events  Events

	mu struct {
		sync.Mutex
		run    *run
		names  map[string]*Export // nil for one that is being made
		lastID uint64
	}
}

// run is the time between a Start and the Stop that follows.
type run struct {
	listener net.Listener
	options  Options
	watch    *watchman
	cancel   context.CancelFunc
	slots    chan struct{} // one token per connection; nil for any number
	adding   sync.WaitGroup
	clients  sync.WaitGroup
	finished chan struct{} // closed when all goroutines of the run have ended

	// Guarded by Server.mu.
	sessions map[*session]struct{}
	stopping bool
}

// New returns a server that does not run. Its exports stand in the registry.
func New(graph *block.Graph, exports *export.Registry, events Events) *Server {
	if events.Opened == nil {
		events.Opened = func(Conn) {}
	}
	if events.Closed == nil {
		events.Closed = func(Conn, error) {}
	}
	if events.AcceptFailed == nil {
		events.AcceptFailed = func(error) {}
	}
	s := &Server{graph: graph, exports: exports, events: events}
	s.mu.names = map[string]*Export{}
	return s
}

func errRunning() error    { return fail(block.KindExists, "NBD server already running") }
func errNotRunning() error { return fail(block.KindNotFound, "NBD server not running") }

// Running says whether the server has a listener.
func (s *Server) Running() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mu.run != nil
}

// Start begins to serve. listen makes the listener, and is only called if the server does not run; the server closes it.
func (s *Server) Start(listen func() (net.Listener, error), options Options) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.run != nil {
		return errRunning()
	}
	listener, err := listen() // under the lock: binding does not wait for anybody
	if err != nil {
		return err
	}
	watch, err := newWatchman()
	if err != nil {
		return errors.Join(err, listener.Close())
	}
	ctx, cancel := context.WithCancel(context.Background()) // the clients' life, ended by Stop
	r := &run{
		listener: listener, options: options, watch: watch, cancel: cancel,
		finished: make(chan struct{}), sessions: map[*session]struct{}{},
	}
	if r.options.MaxRequests == 0 {
		r.options.MaxRequests = DefaultMaxRequests
	}
	if r.options.MaxRequest == 0 {
		r.options.MaxRequest = nbd.MaxPayload
	}
	if options.MaxConnections > 0 {
		r.slots = make(chan struct{}, options.MaxConnections)
	}
	s.mu.run = r
	go s.serve(ctx, r)
	return nil
}

// Busy says whether clients' requests were carried out within the last moments.
func (s *Server) Busy() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mu.run != nil && s.mu.run.watch.busy()
}

// Addr is where the server listens, nil if it does not run.
func (s *Server) Addr() net.Addr {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.run == nil {
		return nil
	}
	return s.mu.run.listener.Addr()
}

// Stop closes the listener, throws all clients out and removes all exports, the newest first. When ctx ends too early,
// the server takes no more clients and exports, and Stop can be called again.
func (s *Server) Stop(ctx context.Context) error {
	s.mu.Lock()
	r := s.mu.run
	if r == nil {
		s.mu.Unlock()
		return errNotRunning()
	}
	first := !r.stopping
	r.stopping = true
	var sessions []*session
	for session := range r.sessions {
		sessions = append(sessions, session)
	}
	s.mu.Unlock()
	var errs []error
	if first {
		errs = append(errs, r.listener.Close())
	}
	// Sessions first: once they are killed they answer nothing, not even that what they had under way was given up.
	for _, session := range sessions {
		session.kill(errStopped)
	}
	r.cancel()
	r.adding.Wait()
	errs = append(errs, s.exports.RemoveAll(ctx, func(e export.Export) bool {
		ours, ok := e.(*Export)
		return ok && ours.server == s
	}))
	select {
	case <-r.finished:
	case <-ctx.Done():
		errs = append(errs, &block.Error{Kind: block.KindShutdown, Op: block.OpGraph, Err: context.Cause(ctx)})
		return errors.Join(errs...)
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.run == r {
		s.mu.run = nil
	}
	return nil
}

var errStopped = errors.New("the server was stopped")

// AddExport makes an export and puts it into the registry.
func (s *Server) AddExport(ctx context.Context, c Config) error {
	s.mu.Lock()
	r := s.mu.run
	if r == nil || r.stopping {
		s.mu.Unlock()
		return errNotRunning()
	}
	r.adding.Add(1)
	s.mu.Unlock()
	defer r.adding.Done()
	return s.exports.Add(c.ID, func() (export.Export, error) { return s.open(ctx, c) })
}

func (s *Server) open(ctx context.Context, c Config) (export.Export, error) {
	if c.Name == "" {
		c.Name = c.Node.Name()
	}
	for _, text := range []string{c.Name, c.Description} {
		if len(text) > nbd.MaxString {
			return nil, fail(block.KindInvalid, "A name or description of %d bytes is too long, %d is the most", len(text),
				nbd.MaxString)
		}
	}
	if err := s.reserve(c.Name); err != nil {
		return nil, err
	}
	e := &Export{config: c, contexts: contextsOf(&c), server: s, stop: make(chan struct{}, 1)}
	e.mu.sessions = map[*session]struct{}{}
	err := e.attach(ctx, s.graph)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		delete(s.mu.names, c.Name)
		return nil, err
	}
	s.mu.names[c.Name] = e
	return e, nil
}

func (s *Server) reserve(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, taken := s.mu.names[name]; taken {
		return fail(block.KindExists, "NBD server already has export named '%s'", name)
	}
	s.mu.names[name] = nil
	return nil
}

func (s *Server) forget(e *Export) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.mu.names, e.config.Name)
}

// find returns the export that clients know by a name, nil if there is none.
func (s *Server) find(name string) *Export {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mu.names[name]
}

// list returns the exports by name.
func (s *Server) list() []*Export {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []*Export
	for _, e := range s.mu.names {
		if e != nil {
			list = append(list, e)
		}
	}
	slices.SortFunc(list, func(a, b *Export) int { return strings.Compare(a.config.Name, b.config.Name) })
	return list
}
