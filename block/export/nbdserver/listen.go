// SPDX-License-Identifier: Apache-2.0

package nbdserver

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strings"
	"syscall"

	"github.com/blkmirror/blkmirror/block"
)

const (
	defaultMode = 0o600
	backlog     = 128
	maxUnixPath = 107 // bytes, without the zero at the end
)

// ListenUnix makes a listening unix socket. mode is that of the socket file, 0 for 0600; nobody can connect before it is
// set. A socket file that a dead server left behind is replaced. Closing the listener removes the file unless
// something else has taken its place.
func ListenUnix(path string, mode os.FileMode) (net.Listener, error) {
	if len(path) > maxUnixPath {
		return nil, fail(block.KindInvalid, "UNIX socket path '%s' is too long: Path must be less than %d bytes", path,
			maxUnixPath+1)
	}
	if mode == 0 {
		mode = defaultMode
	}
	l, err := bindUnix(path, mode.Perm())
	if errors.Is(err, syscall.EADDRINUSE) && removeStale(path) {
		l, err = bindUnix(path, mode.Perm())
	}
	if err != nil {
		return nil, bindError(path, err)
	}
	return l, nil
}

func bindUnix(path string, mode os.FileMode) (net.Listener, error) {
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	socket := os.NewFile(uintptr(fd), path)
	defer socket.Close() // FileListener has its own copy
	if err := syscall.Bind(fd, &syscall.SockaddrUnix{Name: path}); err != nil {
		return nil, err
	}
	file, err := prepare(fd, path, mode)
	if err != nil {
		_ = os.Remove(path)
		return nil, err
	}
	l, err := net.FileListener(socket)
	if err != nil {
		_ = os.Remove(path)
		return nil, err
	}
	return &unixListener{Listener: l, path: path, file: file}, nil
}

// prepare sets the rights of a bound socket before anybody can connect to it.
func prepare(fd int, path string, mode os.FileMode) (fs.FileInfo, error) {
	if err := os.Chmod(path, mode); err != nil {
		return nil, err
	}
	if err := syscall.Listen(fd, backlog); err != nil {
		return nil, err
	}
	return os.Lstat(path)
}

// removeStale removes a socket file on which nobody listens.
func removeStale(path string) bool {
	info, err := os.Lstat(path)
	if err != nil || info.Mode().Type() != fs.ModeSocket {
		return false
	}
	conn, err := net.Dial("unix", path)
	if err == nil {
		_ = conn.Close()
	}
	return errors.Is(err, syscall.ECONNREFUSED) && os.Remove(path) == nil
}

// unixListener removes its file, which a listener made from a file descriptor does not do.
type unixListener struct {
	net.Listener
	path string
	file fs.FileInfo
}

func (l *unixListener) Close() error {
	if now, err := os.Lstat(l.path); err == nil && os.SameFile(now, l.file) {
		_ = os.Remove(l.path)
	}
	return l.Listener.Close()
}

// ListenTCP makes a listening TCP socket. network is "tcp", "tcp4" or "tcp6", port a number or the name of a service.
func ListenTCP(ctx context.Context, network, host, port string) (net.Listener, error) {
	address := net.JoinHostPort(host, port)
	l, err := new(net.ListenConfig).Listen(ctx, network, address)
	if err != nil {
		return nil, bindError(address, err)
	}
	return l, nil
}

func bindError(address string, err error) error {
	var errno syscall.Errno
	reason := err.Error()
	if errors.As(err, &errno) {
		reason = errno.Error()
	}
	first := strings.ToUpper(reason[:min(1, len(reason))])
	return &block.Error{Kind: block.KindOf(err), Op: block.OpOpen,
		Err: fmt.Errorf("Failed to bind socket to %s: %w", address, &phrase{first + reason[len(first):], err})}
}

// phrase is err in other words.
type phrase struct {
	text string
	err  error
}

func (p *phrase) Error() string { return p.text }
func (p *phrase) Unwrap() error { return p.err }

func fail(kind block.Kind, format string, args ...any) error {
	return &block.Error{Kind: kind, Op: block.OpGraph, Err: fmt.Errorf(format, args...)}
}
