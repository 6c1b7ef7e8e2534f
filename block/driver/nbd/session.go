// SPDX-License-Identifier: Apache-2.0

package nbd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/blkmirror/blkmirror/block"
	wire "github.com/blkmirror/blkmirror/block/nbd"
)

// goodbye is how long a server may take to end a connection that we are done with.
const goodbye = 300 * time.Millisecond

// session is a set of connections that begin and end together.
type session struct {
	disk   *Disk
	export export
	conns  []*conn
	turn   atomic.Uint32 // spreads requests over the connections

	parting atomic.Bool // the server is to end the connections, each in its time

	mu struct {
		sync.Mutex
		lost error // why the session ended
	}
}

// connect makes a session: one connection, and more if they are wanted and the server allows that.
func (d *Disk) connect(ctx context.Context) (*session, error) {
	first, e, err := d.join(ctx, attemptTime)
	if err != nil {
		return nil, err
	}
	s := &session{disk: d, export: e}
	s.conns = []*conn{newConn(s, first, &s.export)}
	if d.options.Connections > 1 && e.flags&wire.CanMultiConn != 0 {
		for _, nc := range d.joinMore(ctx, d.options.Connections-1, e) {
			s.conns = append(s.conns, newConn(s, nc, &s.export))
		}
	}
	return s, nil
}

// join makes one connection.
func (d *Disk) join(ctx context.Context, limit time.Duration) (net.Conn, export, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	nc, err := dial(ctx, d.options.Server)
	if err != nil {
		return nil, export{}, err
	}
	agreed, e, err := negotiate(ctx, nc, &d.options)
	if err != nil {
		return nil, export{}, errors.Join(err, nc.Close())
	}
	return agreed, e, nil
}

// joinMore makes n further connections to the same export, or fewer: a server may have no room for them.
func (d *Disk) joinMore(ctx context.Context, n int, e export) []net.Conn {
	conns := make([]net.Conn, n)
	var wg sync.WaitGroup
	for i := range conns {
		wg.Go(func() {
			nc, other, err := d.join(ctx, extraTime)
			if err == nil && other != e {
				closeNow(nc)
			} else if err == nil {
				conns[i] = nc
			}
		})
	}
	wg.Wait()
	var made []net.Conn
	for _, nc := range conns {
		if nc != nil {
			made = append(made, nc)
		}
	}
	return made
}

func (s *session) start() {
	for _, c := range s.conns {
		c.start()
	}
}

// lose ends the session because a connection does not work any more. It does not wait.
func (s *session) lose(why error) {
	s.mu.Lock()
	first := s.mu.lost == nil
	if first {
		s.mu.lost = &block.Error{Kind: block.KindIO, Op: block.OpGraph,
			Err: fmt.Errorf("the connection to NBD server '%s' was lost: %w", s.disk.options.Server, why)}
	}
	s.mu.Unlock()
	if !first {
		return
	}
	s.disk.lost(s) // before any request can learn of it, so that it does not meet this session again
	for _, c := range s.conns {
		c.kill()
	}
}

func (s *session) cause() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mu.lost
}

// wait waits until all goroutines of a session that was lost have ended, and with them all its requests.
func (s *session) wait() {
	for _, c := range s.conns {
		<-c.gone
	}
}

// answered says whether the server answered any request. The session has ended.
func (s *session) answered() bool {
	return slices.ContainsFunc(s.conns, func(c *conn) bool { return c.answered })
}

// drop closes connections that were not started.
func (s *session) drop() {
	for _, c := range s.conns {
		closeNow(c.nc)
		c.in.release()
		c.out.release()
	}
}

// leave ends the session in good order, as far as the server takes part. No request is under way, but for those whose
// callers gave them up.
func (s *session) leave() {
	s.parting.Store(true)
	var wg sync.WaitGroup
	for _, c := range s.conns {
		wg.Go(func() {
			r := newRequest(wire.CmdDisconnect, 0, 0)
			ctx, cancel := context.WithTimeout(context.Background(), goodbye)
			defer cancel()
			if err := c.submit(ctx, r); err != nil {
				return
			}
			// There is no reply: the end of the connection ends the request.
			if abandoned, _ := c.wait(ctx, r); !abandoned {
				r.recycle()
			}
		})
	}
	wg.Wait()
	s.lose(errClosed)
	s.wait()
}

// carryOut sends a request and waits for its outcome: of a flush on all connections, of others on one.
func (s *session) carryOut(ctx context.Context, r *request) outcome {
	c := s.conns[0]
	if len(s.conns) > 1 {
		if r.command == wire.CmdFlush {
			return s.flushAll(ctx, r)
		}
		c = s.conns[s.turn.Add(1)%uint32(len(s.conns))]
	}
	if err := c.submit(ctx, r); err != nil {
		return s.refused(r, err)
	}
	return c.outcome(ctx, r)
}

// outcome is what came of a request.
type outcome struct {
	err   error
	gone  bool // the request is not the caller's any more
	under bool // the server may have got it
	lost  bool // the session ended before the reply
}

func (s *session) refused(r *request, err error) outcome {
	if r.lost {
		return outcome{err: s.cause(), lost: true}
	}
	return outcome{err: err}
}

func (c *conn) outcome(ctx context.Context, r *request) outcome {
	gone, under := c.wait(ctx, r)
	if gone {
		return outcome{err: context.Cause(ctx), gone: true, under: under}
	}
	return outcome{err: r.err, under: under, lost: r.lost}
}

// flushAll flushes every connection: a server that says multi-conn does with one flush what is needed, but a flush per
// connection is right with one that does not, too.
func (s *session) flushAll(ctx context.Context, r *request) outcome {
	var others [MaxConnections]*request
	var result outcome
	started := 0
	for i, c := range s.conns {
		each := r
		if i > 0 {
			each = newRequest(wire.CmdFlush, 0, 0)
		}
		if err := c.submit(ctx, each); err != nil {
			result = s.refused(each, err)
			if i > 0 {
				each.recycle()
			}
			break
		}
		others[i] = each
		started++
	}
	for i := range started {
		one := s.conns[i].outcome(ctx, others[i])
		if i > 0 && !one.gone {
			others[i].recycle()
		}
		if i == 0 {
			result.gone = one.gone
		}
		result.under = result.under || one.under
		if one.err != nil && (result.err == nil || one.lost) {
			result.err, result.lost = one.err, one.lost
		}
	}
	return result
}
