// SPDX-License-Identifier: Apache-2.0

package nbdserver

import (
	"context"
	"errors"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/blkmirror/blkmirror/block"
)

// ListenAbstract makes a listening unix socket that has a name and no file. If not tight, the name is filled up with zeroes.
func ListenAbstract(name string, tight bool) (net.Listener, error) {
	if len(name) > maxUnixPath {
		return nil, fail(block.KindInvalid, "UNIX socket name '%s' is too long: Name must be less than %d bytes", name, maxUnixPath+1)
	}
	address := "@" + name
	if !tight {
		address += strings.Repeat("\x00", maxUnixPath-len(name))
	}
	l, err := net.Listen("unix", address)
	if err != nil {
		return nil, bindError("@"+name, err)
	}
	return l, nil
}

// ListenTCPRange makes a listening TCP socket on the first free port of those up to last, which are numbers.
func ListenTCPRange(ctx context.Context, network, host, port string, last uint16) (net.Listener, error) {
	first, err := strconv.ParseUint(port, 10, 16)
	if err != nil || first > uint64(last) {
		return nil, fail(block.KindInvalid, "No ports from '%s' to %d", port, last)
	}
	for at := first; ; at++ {
		l, err := ListenTCP(ctx, network, host, strconv.FormatUint(at, 10))
		if err == nil || at == uint64(last) || !errors.Is(err, syscall.EADDRINUSE) {
			return l, err
		}
	}
}

// ListenInherited makes a listener of a descriptor that the process was started with: a number, or a name that a service
// manager gave it in LISTEN_FDNAMES. The descriptor belongs to the listener from then on.
func ListenInherited(text string) (net.Listener, error) {
	fd, err := inheritedFD(text)
	if err != nil {
		return nil, err
	}
	if listens, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN); err != nil {
		return nil, fail(block.KindInvalid, "Descriptor '%s' is no socket: %w", text, err)
	} else if listens == 0 {
		return nil, fail(block.KindInvalid, "Descriptor '%s' is a socket that does not listen", text)
	}
	// Whatever happens to the process's own children, they shall not have it.
	unix.CloseOnExec(fd)
	socket := os.NewFile(uintptr(fd), "inherited")
	l, err := net.FileListener(socket) // has a copy
	if err != nil {
		return nil, fail(block.KindInvalid, "Descriptor '%s': %w", text, err)
	}
	_ = socket.Close()
	return l, nil
}

const firstPassedFD = 3

func inheritedFD(text string) (int, error) {
	if fd, err := strconv.ParseUint(text, 10, 31); err == nil {
		if fd < firstPassedFD {
			return 0, fail(block.KindInvalid, "Descriptor '%s' is one of the standard ones", text)
		}
		return int(fd), nil
	}
	count, _ := strconv.ParseUint(os.Getenv("LISTEN_FDS"), 10, 16)
	if os.Getenv("LISTEN_PID") == strconv.Itoa(os.Getpid()) {
		for i, name := range strings.Split(os.Getenv("LISTEN_FDNAMES"), ":") {
			if name == text && uint64(i) < count {
				return firstPassedFD + i, nil
			}
		}
	}
	return 0, fail(block.KindNotFound, "'%s' is no number of a descriptor, and no socket of that name was passed on", text)
}

// A client that is gone without a word, such as one whose host died, is noticed after about two minutes.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 60 * time.Second, Interval: 15 * time.Second, Count: 4}

// tune prepares a connection for requests and replies.
func tune(conn net.Conn) {
	if tcp, ok := conn.(*net.TCPConn); ok { // sends small packets at once, as all of Go's
		_ = tcp.SetKeepAliveConfig(keepAlive) // an old kernel may not know it; the connection works all the same
	}
}
