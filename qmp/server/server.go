// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"errors"
	"io"
	"maps"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/blkmirror/blkmirror/qmp"
	"github.com/blkmirror/blkmirror/qmp/api"
)

// DefaultMaxOutput is how much may wait for a client that does not read.
const DefaultMaxOutput = 16 << 20

// DefaultMaxClients is how many clients may be connected.
const DefaultMaxClients = 100

// Config is what a server needs.
type Config struct {
	// Commands executes a command: usually api.Dispatch with something that
	// implements api.Commands. Calls never overlap, but for Aside. A nil result is answered
	// as {}; an error that is or wraps no *qmp.Error is a GenericError.
	Commands func(ctx context.Context, name string, args *qmp.Object) (any, error)

	// Version is shown in the greeting.
	Version api.VersionInfo

	// Log gets a line when something is wrong with a client or a listener,
	// never one per request. By default it goes nowhere.
	Log *logrus.Entry

	// MaxOutput is the number of bytes that may wait for a client before it
	// is dropped; 0 is DefaultMaxOutput.
	MaxOutput int

	// MaxClients is the number of clients of all listeners together; one
	// more is told so and sent away. 0 is DefaultMaxClients.
	MaxClients int

	// Busy tells whether guests' requests are under way; then sessions pause
	// once they took more than a share of one processor. It is called often and
	// must not wait. By default that is never so.
	Busy func() bool

	// Limits bound one message of a client; zero values are QEMU's bounds.
	Limits qmp.Limits
}

// Server answers QMP clients. Its methods may be called at any time from any
// goroutine.
type Server struct {
	config Config

	// turn has room for whoever may execute a command. A channel serves
	// those who wait in the order in which they came, and a session waits
	// with one request at a time: that makes round robin.
	turn chan struct{}

	// open ends, by stop, when no further command is to be executed.
	open context.Context
	stop context.CancelFunc

	// base is the context of commands; Shutdown cancels it when it has waited
	// for a running command long enough.
	base   context.Context
	cancel context.CancelFunc

	// sessionsDone counts the clients that Serve accepted.
	sessionsDone sync.WaitGroup

	mu struct {
		sync.Mutex
		closing   bool
		listeners map[net.Listener]struct{}
		sessions  map[*session]struct{}
		clients   int // those of sessionsDone
		lastID    int
	}

	// events is held while an event is made and queued, so that all sessions
	// see the same order. Nothing waits under it.
	events struct {
		sync.Mutex
		compact, pretty *qmp.Encoder
		now             func() time.Time
	}
}

// New returns a server without listeners.
func New(config Config) *Server {
	if config.Log == nil {
		silent := logrus.New()
		silent.SetOutput(io.Discard)
		config.Log = logrus.NewEntry(silent)
	}
	if config.Busy == nil {
		config.Busy = func() bool { return false }
	}
	if config.MaxOutput == 0 {
		config.MaxOutput = DefaultMaxOutput
	}
	if config.MaxClients == 0 {
		config.MaxClients = DefaultMaxClients
	}
	s := &Server{
		config: config,
		turn:   make(chan struct{}, 1),
	}
	s.open, s.stop = context.WithCancel(context.Background())
	s.base, s.cancel = context.WithCancel(context.Background())
	s.mu.listeners = map[net.Listener]struct{}{}
	s.mu.sessions = map[*session]struct{}{}
	s.events.compact = qmp.NewEncoder(nil, false)
	s.events.pretty = qmp.NewEncoder(nil, true)
	s.events.now = time.Now
	return s
}

// ListenerOptions are options of the sessions of a listener.
type ListenerOptions struct {
	// Pretty makes the output indented.
	Pretty bool

	// Secure, unless nil, is what a client must get through before anything
	// is said: it returns the connection to go on with, and an error for a
	// client that may not come in. It must return when its context ends, and
	// is called by many goroutines at once.
	Secure func(ctx context.Context, conn net.Conn) (net.Conn, error)
}

// ErrClosed is returned by Serve on a server that is shut down already.
var ErrClosed = errors.New("QMP server is shut down")

// Serve accepts clients until Shutdown or until the listener is closed, and
// closes the listener. It does not wait for the sessions: Shutdown does.
func (s *Server) Serve(l net.Listener, opts ListenerOptions) error {
	defer l.Close()
	s.mu.Lock()
	if s.mu.closing {
		s.mu.Unlock()
		return ErrClosed
	}
	s.mu.listeners[l] = struct{}{}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.mu.listeners, l)
		s.mu.Unlock()
	}()
	for {
		conn, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			// Out of descriptors, most likely. It passes.
			s.config.Log.WithError(err).Warn("cannot accept a QMP client")
			select {
			case <-time.After(acceptPause):
				continue
			case <-s.open.Done():
				return nil
			}
		}
		switch s.countIn() {
		case nil:
			go func() {
				defer s.countOut()
				s.client(conn, opts)
			}()
		case ErrClosed:
			conn.Close()
			return nil
		default:
			s.sendAway(conn, opts)
		}
	}
}

// acceptPause is the time between two attempts to accept after a failure.
const acceptPause = 100 * time.Millisecond

// ServeConn runs a session on a connection that is there already, such as
// standard input and output, and closes it. It returns when the client leaves,
// or after Shutdown as soon as reading from conn ends. Shutdown waits until
// the output is written, but not for ServeConn to return.
func (s *Server) ServeConn(conn io.ReadWriteCloser, opts ListenerOptions) error {
	ss := s.begin(conn, opts)
	if ss == nil {
		conn.Close()
		return ErrClosed
	}
	ss.run()
	return nil
}

// begin makes a session, unless the server is shut down.
func (s *Server) begin(conn io.ReadWriteCloser, opts ListenerOptions) *session {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.closing {
		return nil
	}
	s.mu.lastID++
	ss := newSession(s, conn, opts, s.mu.lastID)
	s.mu.sessions[ss] = struct{}{}
	return ss
}

// Clients is how many sessions there are.
func (s *Server) Clients() int { return s.sessionCount() }

func (s *Server) sessionCount() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.mu.sessions)
}

func (s *Server) end(ss *session) {
	s.mu.Lock()
	delete(s.mu.sessions, ss)
	s.mu.Unlock()
}

// Emit announces an event to every client that has negotiated. It never
// waits, and may be called from within a command.
func (s *Server) Emit(event qmp.Event) {
	for _, ss := range s.queueEvent(event) {
		ss.log.Warn("QMP client does not read its events and is dropped")
	}
}

// queueEvent queues an event for all sessions, and returns those that have to
// be dropped.
func (s *Server) queueEvent(event qmp.Event) (dropped []*session) {
	s.events.Lock()
	defer s.events.Unlock()
	now := s.events.now()
	var compact, pretty []byte
	s.mu.Lock()
	defer s.mu.Unlock()
	for ss := range s.mu.sessions {
		text, e := &compact, s.events.compact
		if ss.pretty {
			text, e = &pretty, s.events.pretty
		}
		if *text == nil {
			*text = encodeEvent(e, event, now)
		}
		if !ss.queueEvent(*text) {
			dropped = append(dropped, ss)
		}
	}
	return dropped
}

func encodeEvent(e *qmp.Encoder, event qmp.Event, now time.Time) []byte {
	e.Reset()
	e.BeginObject()
	e.Key("timestamp")
	e.BeginObject()
	e.Key("seconds")
	e.Int(now.Unix())
	e.Key("microseconds")
	e.Int(int64(now.Nanosecond() / 1000))
	e.EndObject()
	e.Key("event")
	e.String(event.EventName())
	e.Key("data")
	event.EncodeQMP(e)
	e.EndObject()
	e.EndLine()
	return e.Bytes()
}

// StopCommands sees to it that no command is started from now on; requests
// get no reply. It does not wait for a command that runs, so that a command,
// such as quit, may call it.
func (s *Server) StopCommands() { s.stop() }

// Shutdown ends the server: listeners are closed and their paths removed, a
// running command is waited for, what is queued for clients is written, and
// connections are closed. When ctx ends, it goes on without waiting, and
// returns the error of ctx. It must not be called from within a command.
func (s *Server) Shutdown(ctx context.Context) error {
	s.StopCommands()
	s.mu.Lock()
	s.mu.closing = true
	listeners := slices.Collect(maps.Keys(s.mu.listeners))
	s.mu.Unlock()
	for _, l := range listeners {
		l.Close()
	}

	select {
	case s.turn <- struct{}{}:
		<-s.turn
	case <-ctx.Done():
	}
	s.cancel()

	s.mu.Lock()
	sessions := slices.Collect(maps.Keys(s.mu.sessions))
	s.mu.Unlock()
	for _, ss := range sessions {
		ss.wakeWriter() // all write at once, and are waited for one by one
	}
	for _, ss := range sessions {
		ss.finish(ctx)
	}

	done := make(chan struct{})
	go func() {
		s.sessionsDone.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Close shuts down without waiting for clients that do not read.
func (s *Server) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	return s.Shutdown(ctx)
}

// closeTimeout is how long Close waits.
const closeTimeout = time.Second
