// SPDX-License-Identifier: Apache-2.0

package nbd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/blkmirror/blkmirror/block"
)

const (
	// attemptTime bounds one attempt to connect and to agree with the server.
	attemptTime = 10 * time.Second
	// extraTime bounds the connections after the first, which are not worth a longer wait.
	extraTime = 2 * time.Second
	// silence is how long a peer may leave data unacknowledged before TCP gives it up; an idle one is probed.
	silence = 10 * time.Second
)

// dial connects to the server.
func dial(ctx context.Context, a Address) (net.Conn, error) {
	if a.Network == "fd" {
		return inherit(a)
	}
	d := net.Dialer{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: silence / 2, Interval: silence / 6, Count: 3}}
	d.SetMultipathTCP(a.MPTCP)
	if a.Network != "unix" {
		d.Control = func(_, _ string, raw syscall.RawConn) error {
			return raw.Control(func(fd uintptr) {
				// Without it the kernel goes on for a quarter of an hour. It is no more than a hint to those that lack it.
				_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(silence/time.Millisecond))
			})
		}
	}
	conn, err := d.DialContext(ctx, a.Network, a.Address) // with TCP_NODELAY, as Go has it
	if err != nil {
		return nil, connectError(a, err)
	}
	return conn, nil
}

// inherit takes over a descriptor, which cannot be had a second time.
func inherit(a Address) (net.Conn, error) {
	fd, err := strconv.Atoi(a.Address)
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		return nil, invalid("File descriptor '%s' is not a socket", a.Address)
	}
	f := os.NewFile(uintptr(fd), "nbd server")
	defer f.Close() // FileConn has its own copy
	conn, err := net.FileConn(f)
	if err != nil {
		return nil, connectError(a, err)
	}
	return conn, nil
}

func connectError(a Address, err error) error {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		text := errno.Error()
		return &block.Error{Kind: block.KindOf(errno), Op: block.OpOpen,
			Err: fmt.Errorf("Failed to connect to '%s': %s%s", a, strings.ToUpper(text[:1]), text[1:])}
	}
	return &block.Error{Kind: block.KindIO, Op: block.OpOpen, Err: fmt.Errorf("Failed to connect to '%s': %w", a, err)}
}
