// SPDX-License-Identifier: Apache-2.0

package nbdserver

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/budget"
	"github.com/blkmirror/blkmirror/block/nbd"
)

const (
	// maxBytes, and Options.MaxRequests, bound what one client can have under way: the bytes of data of requests that were
	// read and whose replies were not written. The largest request fits.
	maxBytes = nbd.MaxPayload
	// maxUnsent is how many bytes of replies may wait for a client before nothing more is read from the disk for it.
	maxUnsent = 512 << 10
	// leastOwn is the least memory that a connection never waits for, and manyConnections how many connections
	// are reckoned with where any number may come.
	leastOwn        = 64 << 10
	manyConnections = 100
	// maxIdle is how many goroutines of a session wait for the turn rather than end.
	maxIdle = 8
	// maxDrain is the most data that is read only to be thrown away, after a request that is refused.
	maxDrain = 2 * nbd.MaxPayload

	// deepFor is for how many requests a session counts as having more than one request at a time.
	deepFor = 16
	// promptly is how soon a client cannot have reacted to a reply: what is there already was sent before.
	promptly = 4 * time.Microsecond
)

// form is the shape of messages that was agreed on.
type form uint8

const (
	simple     form = iota // simple replies only
	structured             // reads and block status are answered in chunks
	extended               // everything is answered in chunks, and lengths have 64 bits
)

// session is the connection of one client. See the package comment for how its goroutines take turns.
type session struct {
	server *Server
	conn   net.Conn // what kill closes
	stream net.Conn // conn, or TLS on it; changed by the handshake only
	cancel context.CancelCauseFunc
	watch  *watchman
	in     *input          // belongs to whoever has the turn
	memory *budget.Account // what requests under way hold

	maxRequests int
	maxRequest  uint64 // bytes of data of one

	id      uint64
	remote  string // address, "" for a local socket
	traffic traffic

	// What the handshake found out; fixed afterwards.
	export      *Export
	form        form          // of requests and replies
	requestSize int           // bytes of a request without its data
	contexts    []metaContext // what block status tells

	workers sync.WaitGroup
	turn    chan struct{} // the turn, on its way from one goroutine to another
	over    chan struct{} // closed when no more requests will be read

	// loan is odd while the turn is lent. It only grows, so that the watchman can tell loans apart.
	loan atomic.Uint64
	pace pace

	// Whoever has the turn uses these.
	deep int  // above 0: the client sent several requests at a time lately
	last sort // of the request before

	mu struct {
		sync.Mutex
		room     sync.Cond // fewer requests or bytes than before
		idle     int       // goroutines that wait for the turn, or are about to
		ended    bool      // no more requests will be read
		broken   bool      // no more replies can be written
		writing  bool      // somebody writes replies and will go on until there are none
		err      error     // why the session ended, if not in good order
		requests int
		bytes    int64
		unsent   int64 // bytes of replies that wait to be written, or are being written
		out      *replies
		empty    *replies // takes the place of out while that is written
	}
}

func newSession(server *Server, conn net.Conn, r *run, cancel context.CancelCauseFunc) *session {
	o := &r.options
	connections := o.MaxConnections
	if connections == 0 {
		connections = manyConnections
	}
	s := &session{
		server: server, conn: conn, stream: conn, watch: r.watch, cancel: cancel,
		memory:      o.Budget.Open(o.Budget.Part(connections, leastOwn, maxBytes)),
		maxRequests: o.MaxRequests, maxRequest: uint64(o.MaxRequest),
		in: newInput(conn), requestSize: nbd.RequestSize,
		turn: make(chan struct{}, 1), over: make(chan struct{}),
	}
	s.mu.room.L = &s.mu.Mutex
	s.mu.out, s.mu.empty = newReplies(s.maxRequests), newReplies(s.maxRequests)
	return s
}

// kill ends the session from outside. Requests that wait for a gate are given up, those under way end first.
func (s *session) kill(cause error) {
	s.mu.Lock()
	if s.mu.err == nil {
		s.mu.err = cause
	}
	s.mu.broken = true
	s.mu.Unlock()
	s.cancel(cause)
	_ = s.conn.Close()
}

// end notes that no more requests will be read. The caller has the turn, which ends with it.
func (s *session) end(err error) {
	vanished := err == io.EOF
	if vanished {
		s.cancel(errVanished) // what waits at a gate waits for nobody; the rest may still be answered
	} else if err != nil {
		s.kill(err)
	}
	s.mu.Lock()
	s.mu.ended = true
	if vanished && s.mu.requests > 0 && s.mu.err == nil {
		s.mu.err = errVanished
	}
	s.mu.Unlock()
	close(s.over)
	s.flush()
}

var errVanished = errors.New("the client closed the connection while requests were under way")

// leaving says whether the session is about to end.
func (s *session) leaving() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mu.ended
}

// transmit carries out requests until the session ends, and returns why it ended: nil after a client's good-bye.
func (s *session) transmit(ctx context.Context) error {
	s.watch.add(s)
	s.mu.Lock()
	s.spareLocked(ctx)
	s.mu.Unlock()
	s.pass()
	s.workers.Wait()
	s.watch.remove(s)
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mu.err
}

// step reads one request, and carries it out or refuses it. The caller has the turn; it is the caller's still if step
// returns true.
func (s *session) step(ctx context.Context) bool {
	r, ok := s.peek(ctx)
	if !ok {
		return false
	}
	t := task{Request: r}
	refused := s.check(&t)
	if refused != 0 {
		t.cost = 0 // its data is thrown away
	}
	if !s.admit(ctx, &t) {
		if !s.flushInTurn(ctx) {
			return false
		}
		if err := s.admitLater(ctx, &t); err != nil {
			s.end(err)
			return false
		}
	}
	s.in.skip(s.requestSize)
	if err := s.takePayload(&t, refused); err != nil {
		s.forget(&t)
		s.end(err)
		return false
	}
	if t.Command == nbd.CmdBlockStatus && t.data != nil {
		refused = s.narrow(&t)
	}
	if refused != 0 {
		s.traffic.refused.Add(1)
		return s.answer(&t, refused) || s.flushInTurn(ctx)
	}
	return s.carryOut(ctx, &t)
}

// takePayload reads what follows a request.
func (s *session) takePayload(t *task, refused nbd.Errno) error {
	n := s.payload(&t.Request)
	if refused != 0 || n == 0 {
		return s.in.discard(int64(n))
	}
	t.data = block.GetBuffer(int(n))
	if err := s.in.take(t.data.B); err != nil {
		t.data.Release()
		return err
	}
	return nil
}

// peek returns the next request without using up its bytes. Before it waits for bytes it sends the replies at hand.
// false: the turn is gone.
func (s *session) peek(ctx context.Context) (nbd.Request, bool) {
	if len(s.in.buffered()) < s.requestSize {
		if !s.flushInTurn(ctx) {
			return nbd.Request{}, false
		}
		if err := s.receive(); err != nil {
			s.end(err)
			return nbd.Request{}, false
		}
	}
	parse := nbd.ParseRequest
	if s.form == extended {
		parse = nbd.ParseExtendedRequest
	}
	r, err := parse(s.in.buffered())
	switch {
	case err != nil:
		s.end(err)
		return r, false
	case r.Command == nbd.CmdDisconnect:
		s.end(nil)
		return r, false
	case s.payload(&r) > maxDrain:
		s.end(errTooLong(r.Length))
		return r, false
	}
	if uint64(len(s.in.buffered())-s.requestSize) < s.payload(&r) && !s.flushInTurn(ctx) {
		return r, false
	}
	return r, true
}

// receive waits for a request.
func (s *session) receive() error {
	if !s.pace.slow(s.last) {
		return s.in.fill(s.requestSize)
	}
	began := time.Now()
	err := s.in.fill(s.requestSize)
	if time.Since(began) < promptly {
		s.deep = deepFor
	}
	return err
}

// carryOut carries a request out: here and now if that is likely to be quick, else beside the following ones.
func (s *session) carryOut(ctx context.Context, t *task) bool {
	gate := s.export.backend.Gate()
	s.last = sortOf(&t.Request)
	slow := s.deep > 0 && s.pace.slow(s.last)
	entered := gate.TryEnter()
	if !slow && entered {
		loan := s.lend()
		more := s.perform(ctx, gate, t)
		if !s.reclaim(loan) {
			s.flush()
			return false
		}
		return more || s.flushInTurn(ctx)
	}
	s.pass()
	if !entered {
		if err := gate.Enter(ctx); err != nil {
			s.answer(t, nbd.ErrnoOf(err))
			s.flush()
			return false
		}
	}
	s.perform(ctx, gate, t)
	s.flush()
	return false
}
