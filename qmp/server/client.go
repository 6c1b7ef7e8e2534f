// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"errors"
	"net"
	"time"

	"github.com/blkmirror/blkmirror/qmp"
)

const (
	// secureTimeout is how long a client may take to prove who it is.
	secureTimeout = 10 * time.Second
	// sendAwayTimeout is how long the listener waits for a client that is told
	// to go. Its socket is new and empty, so it need not wait at all.
	sendAwayTimeout = 100 * time.Millisecond
)

var errTooMany = errors.New("too many clients")

// countIn counts a client of a listener, if there is room for it.
func (s *Server) countIn() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.mu.closing:
		return ErrClosed
	case s.mu.clients >= s.config.MaxClients:
		return errTooMany
	}
	s.mu.clients++
	s.sessionsDone.Add(1)
	return nil
}

func (s *Server) countOut() {
	s.mu.Lock()
	s.mu.clients--
	s.mu.Unlock()
	s.sessionsDone.Done()
}

// client is the life of one connection that was accepted.
func (s *Server) client(conn net.Conn, opts ListenerOptions) {
	if opts.Secure != nil {
		ctx, cancel := context.WithTimeout(s.open, secureTimeout)
		secure, err := opts.Secure(ctx, conn)
		cancel()
		if err != nil {
			conn.Close()
			s.config.Log.WithField("remote", conn.RemoteAddr()).WithError(err).Warn("refused a QMP client")
			return
		}
		conn = secure
	}
	if ss := s.begin(conn, opts); ss != nil {
		ss.run()
		return
	}
	conn.Close()
}

// sendAway tells a client that there is no room for it. One that would have to
// prove first who it is learns nothing.
func (s *Server) sendAway(conn net.Conn, opts ListenerOptions) {
	defer conn.Close()
	if opts.Secure != nil {
		return
	}
	e := qmp.NewEncoder(nil, opts.Pretty)
	e.BeginObject()
	e.Key("error")
	e.BeginObject()
	e.Key("class")
	e.String(string(qmp.GenericError))
	e.Key("desc")
	e.String(qmp.Errorf("%d clients are connected to monitors, and no more are taken", s.config.MaxClients).Desc)
	e.EndObject()
	e.EndObject()
	e.EndLine()
	conn.SetWriteDeadline(time.Now().Add(sendAwayTimeout))
	conn.Write(e.Bytes()) // whether it is read is the client's affair
}
