// SPDX-License-Identifier: Apache-2.0

package sockets

import (
	"fmt"
	"net"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
)

// Guard returns a listener that takes the clients of the users in a.UIDs only, and closes the connections of others. refused is
// told about those; it may be called at any time while Accept runs.
func (a Access) Guard(l net.Listener, refused func(error)) net.Listener {
	if a.UIDs == nil {
		return l
	}
	return &guard{l, a, refused}
}

type guard struct {
	net.Listener
	access  Access
	refused func(error)
}

func (g *guard) Accept() (net.Conn, error) {
	for {
		conn, err := g.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if err = g.check(conn); err == nil {
			return conn, nil
		}
		_ = conn.Close()
		g.refused(err)
	}
}

func (g *guard) check(conn net.Conn) error {
	peer, err := peerOf(conn)
	if err != nil {
		return fmt.Errorf("refused a client whose user is not known: %w", err)
	}
	if !slices.Contains(g.access.UIDs, peer.Uid) {
		return fmt.Errorf("refused process %d of user %d: the socket takes clients of users %s only", peer.Pid, peer.Uid, g.access.allowed())
	}
	return nil
}

// peerOf is whom the kernel knows at the other end of a local connection.
func peerOf(conn net.Conn) (*unix.Ucred, error) {
	c, ok := conn.(syscall.Conn)
	if !ok {
		return nil, fmt.Errorf("%T is no socket", conn)
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	var peer *unix.Ucred
	var failed error
	if err := raw.Control(func(fd uintptr) {
		peer, failed = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return nil, err
	}
	return peer, failed
}
