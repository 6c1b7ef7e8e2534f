// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// probeTimeout is how long another daemon has to accept a connection.
const probeTimeout = 2 * time.Second

// Listen makes a listener on a local socket that only this user can connect
// to. A socket that nobody listens on is replaced; one that another process
// listens on, and anything that is not a socket, is left alone, and an error.
// Closing the listener removes the path if it still is this socket.
func Listen(path string) (net.Listener, error) {
	for range 3 {
		l, err := listenUnix(path)
		if !errors.Is(err, unix.EADDRINUSE) {
			return l, err
		}
		if err := removeStale(path); err != nil {
			return nil, err
		}
	}
	return nil, fmt.Errorf("cannot listen on '%s': another process makes the same socket", path)
}

func listenUnix(path string) (net.Listener, error) {
	config := net.ListenConfig{
		Control: func(_, _ string, raw syscall.RawConn) error {
			// Linux gives the socket file the mode of the descriptor: at no
			// moment can others connect.
			var err error
			if failed := raw.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), 0o600) }); failed != nil {
				return failed
			}
			return err
		},
	}
	l, err := config.Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, fmt.Errorf("cannot listen on '%s': %w", path, unwrapOp(err))
	}
	ul := l.(*net.UnixListener)
	ul.SetUnlinkOnClose(false)
	// The program may have another folder when the listener is closed.
	absolute, err := filepath.Abs(path)
	if err != nil {
		absolute = path
	}
	info, err := os.Lstat(absolute)
	if err != nil {
		ul.Close()
		return nil, fmt.Errorf("cannot listen on '%s': %w", path, err)
	}
	return &pathListener{UnixListener: ul, path: absolute, ours: info}, nil
}

// removeStale removes a socket that nobody listens on.
func removeStale(path string) error {
	before, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if before.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("cannot listen on '%s': it exists and is not a socket", path)
	}
	conn, err := net.DialTimeout("unix", path, probeTimeout)
	switch {
	case err == nil:
		conn.Close()
		return fmt.Errorf("cannot listen on '%s': another process listens on it", path)
	case errors.Is(err, unix.ECONNREFUSED):
	case errors.Is(err, fs.ErrNotExist):
		return nil
	default:
		// Its queue may be full, or we may lack the permission to ask.
		return fmt.Errorf("cannot listen on '%s': it may be in use: %w", path, unwrapOp(err))
	}
	// Another daemon that starts at the same moment may have replaced it.
	if now, err := os.Lstat(path); err != nil || !os.SameFile(before, now) {
		return nil
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// pathListener removes its path when it is closed, if it still is its own.
type pathListener struct {
	*net.UnixListener
	path string
	ours os.FileInfo // its inode is not used again while the socket is open
	once sync.Once
}

func (l *pathListener) Close() error {
	err := net.ErrClosed
	l.once.Do(func() {
		if now, failed := os.Lstat(l.path); failed == nil && os.SameFile(now, l.ours) {
			os.Remove(l.path)
		}
		err = l.UnixListener.Close()
	})
	return err
}

// ListenTCP makes a listener on a TCP address.
func ListenTCP(host, port string) (net.Listener, error) {
	l, err := net.Listen("tcp", net.JoinHostPort(host, port))
	if err != nil {
		return nil, fmt.Errorf("cannot listen on '%s': %w", net.JoinHostPort(host, port), unwrapOp(err))
	}
	return l, nil
}

// ListenFD makes a listener of a listening socket that was inherited, and
// takes the descriptor over. Closing the listener leaves its path alone.
func ListenFD(fd int) (net.Listener, error) {
	listening, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	if err != nil {
		return nil, fmt.Errorf("cannot listen on descriptor %d: %w", fd, err)
	}
	if listening == 0 {
		return nil, fmt.Errorf("cannot listen on descriptor %d: it is not a listening socket", fd)
	}
	file := os.NewFile(uintptr(fd), "inherited socket")
	defer file.Close()
	l, err := net.FileListener(file)
	if err != nil {
		return nil, fmt.Errorf("cannot listen on descriptor %d: %w", fd, unwrapOp(err))
	}
	return l, nil
}

// unwrapOp returns the cause of an error of package net, without the address
// that our own texts name already.
func unwrapOp(err error) error {
	if op, ok := errors.AsType[*net.OpError](err); ok {
		return op.Err
	}
	return err
}
