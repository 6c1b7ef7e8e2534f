// SPDX-License-Identifier: Apache-2.0

package nbdserver

import (
	"context"
	"errors"
	"net"
	"time"
)

// acceptPause is how long the server waits after it could not accept a connection, such as for want of descriptors.
const acceptPause = 100 * time.Millisecond

// serve accepts clients until the listener is closed, then waits for their end.
func (s *Server) serve(ctx context.Context, r *run) {
	defer close(r.finished)
	off, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		r.watch.run(off)
	}()
	for r.takeSlot(ctx) {
		conn, err := r.listener.Accept()
		if err == nil {
			r.clients.Add(1)
			go s.client(ctx, r, conn)
			continue
		}
		r.freeSlot()
		if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
			break
		}
		s.events.AcceptFailed(err)
		select {
		case <-time.After(acceptPause):
		case <-ctx.Done():
		}
	}
	r.clients.Wait()
	close(off)
	r.watch.close()
	<-stopped
}

func (r *run) takeSlot(ctx context.Context) bool {
	if r.slots == nil {
		return ctx.Err() == nil
	}
	select {
	case r.slots <- struct{}{}:
		return true
	case <-ctx.Done():
		return false
	}
}

func (r *run) freeSlot() {
	if r.slots != nil {
		<-r.slots
	}
}

// client is the life of one connection.
func (s *Server) client(ctx context.Context, r *run, conn net.Conn) {
	defer r.clients.Done()
	defer r.freeSlot()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	tune(conn)
	session := newSession(s, conn, r, cancel)
	defer session.memory.Close()
	var about Conn
	if a := conn.RemoteAddr(); a != nil && a.Network() != "unix" {
		about.Remote = a.String()
	}
	s.mu.Lock()
	s.mu.lastID++
	about.ID = s.mu.lastID
	session.id, session.remote = about.ID, about.Remote
	stopping := r.stopping
	r.sessions[session] = struct{}{}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(r.sessions, session)
	}()
	if stopping {
		_ = conn.Close()
		return
	}
	s.events.Opened(about)
	err := session.run(ctx, r.options)
	session.hangUp() // the client may wait for this
	if session.export != nil {
		about.Export = session.export.config.ID
	}
	s.events.Closed(about, err)
}
