// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/blkmirror/blkmirror/cmd/blkmirror/follow"
	"github.com/blkmirror/blkmirror/qmp"
	"github.com/blkmirror/blkmirror/qmp/client"
)

// defaultPatience is how long the daemon may take to greet us before the user
// is told why.
const defaultPatience = 2 * time.Second

// eventBuffer is how many events wait for us. It is plenty: a job that has
// thousands of failed requests in a moment must not hide its own end.
const eventBuffer = 1 << 14

// session is a connection to the daemon whose errors say which one.
type session struct {
	*client.Client
	socket string
	daemon int // process at the other end of a local socket, else 0
}

var _ follow.Monitor = (*session)(nil)

// local tells whether the daemon runs on this host: its paths are ours.
func (s *session) local() bool { return !strings.HasPrefix(s.socket, "tcp:") }

// with connects, does something, and disconnects.
func (c *cli) with(ctx context.Context, do func(s *session) error) error {
	if c.socket == "" {
		return usage("no socket given: use --socket or set %s", envSocket)
	}
	s, err := c.connect(ctx)
	if err != nil {
		return err
	}
	defer s.Close()
	return do(s)
}

func (c *cli) connect(ctx context.Context) (*session, error) {
	network, address := "unix", c.socket
	if rest, ok := strings.CutPrefix(c.socket, "tcp:"); ok {
		network, address = "tcp", rest
	}
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, network, address)
	if err != nil {
		return nil, c.connectFailed(ctx, err)
	}
	type greeted struct {
		client *client.Client
		err    error
	}
	result := make(chan greeted, 1)
	go func() {
		qmpClient, err := client.New(ctx, conn, client.Options{EventBuffer: eventBuffer})
		result <- greeted{qmpClient, err}
	}()
	timer := time.NewTimer(c.patience)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
			fmt.Fprintf(c.stderr, "blkmirror: waiting for the daemon at '%s': it seems to talk to another client\n", c.socket)
		case r := <-result: // comes at the end of ctx, too
			if r.err != nil {
				return nil, c.connectFailed(ctx, r.err)
			}
			return &session{Client: r.client, socket: c.socket, daemon: peer(conn)}, nil
		}
	}
}

// peer is the process at the other end of a local socket, 0 if that is not known. It is the one that made the socket, so
// systemd where that did.
func peer(conn net.Conn) int {
	local, ok := conn.(*net.UnixConn)
	if !ok {
		return 0
	}
	raw, err := local.SyscallConn()
	if err != nil {
		return 0
	}
	pid := 0
	err = raw.Control(func(fd uintptr) {
		if c, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			pid = int(c.Pid)
		}
	})
	if err != nil {
		return 0
	}
	return pid
}

// connectFailed says why there is no connection: it may be that the user does
// not want to wait any longer.
func (c *cli) connectFailed(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("connecting to the daemon at '%s': %w", c.socket, context.Cause(ctx))
	}
	// The text of an operation names the address a second time.
	if op, ok := errors.AsType[*net.OpError](err); ok {
		err = op.Err
	}
	return &connectionError{c.socket, err}
}

// Execute runs a command. Refusals are *qmp.Error.
func (s *session) Execute(ctx context.Context, command string, args, result any) error {
	err := s.Client.Execute(ctx, command, args, result)
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*qmp.Error](err); ok {
		return err
	}
	if ctx.Err() != nil {
		return fmt.Errorf("%s: %w", command, context.Cause(ctx))
	}
	return &connectionError{s.socket, err}
}
