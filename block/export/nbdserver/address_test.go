// SPDX-License-Identifier: Apache-2.0

package nbdserver

import (
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/blkmirror/blkmirror/block/nbd/nbdguest"
)

// inherited is a descriptor as a parent leaves it: nobody in this process looks after it.
func inherited(t *testing.T, socket interface{ File() (*os.File, error) }) string {
	t.Helper()
	f, err := socket.File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD, 100)
	if err != nil {
		t.Fatal(err)
	}
	return strconv.Itoa(fd)
}

func TestInheritedListeners(t *testing.T) {
	path := filepath.Join(t.TempDir(), "passed")
	unixListener, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	unixListener.SetUnlinkOnClose(false)
	tcpListener, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	for _, passed := range []interface {
		net.Listener
		File() (*os.File, error)
	}{unixListener, tcpListener} {
		fd := inherited(t, passed)
		_ = passed.Close()
		h := newHouse(t, Options{})
		h.must(h.server.Stop(h.bounded()))
		h.must(h.server.Start(func() (net.Listener, error) { return ListenInherited(fd) }, Options{}))
		h.export("d")
		c, err := nbdguest.Dial(h.bounded(), passed.Addr().Network(), passed.Addr().String(), "d", nbdguest.Options{})
		h.must(err)
		h.must(c.Disconnect(h.bounded()))
		h.must(h.server.Stop(h.bounded()))
		h.wantErr(h.server.Start(func() (net.Listener, error) { return ListenInherited(fd) }, Options{}), "is no socket")
	}
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("the socket that somebody else made: %v", err)
	}

	h := newHouse(t, Options{})
	conn := h.raw()
	bad := inherited(t, conn.(*net.UnixConn))
	for text, want := range map[string]string{bad: "does not listen", "1": "standard", "-1": "no number", "x": "no number", "": "no number",
		"99999999999": "no number", "1000000": "is no socket"} {
		if l, err := ListenInherited(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("descriptor %q: %v, %v; want %q", text, l, err, want)
		}
	}
	if fd, err := strconv.Atoi(bad); err == nil {
		_ = unix.Close(fd)
	}
}

func TestInheritedByName(t *testing.T) {
	t.Setenv("LISTEN_FDS", "2")
	t.Setenv("LISTEN_FDNAMES", "one:two:three")
	t.Setenv("LISTEN_PID", strconv.Itoa(os.Getpid()))
	if fd, err := inheritedFD("two"); err != nil || fd != 4 {
		t.Errorf("descriptor %d, %v", fd, err)
	}
	if _, err := inheritedFD("three"); err == nil {
		t.Error("a socket that was not passed on")
	}
	t.Setenv("LISTEN_PID", "1")
	if _, err := inheritedFD("two"); err == nil {
		t.Error("a socket for somebody else")
	}
}

func TestAbstractSocket(t *testing.T) {
	for _, tight := range []bool{true, false} {
		name := "blkmirror-" + filepath.Base(t.TempDir()) + strconv.Itoa(os.Getpid())
		l, err := ListenAbstract(name, tight)
		if err != nil {
			t.Fatal(err)
		}
		address := "@" + name
		if !tight {
			address += strings.Repeat("\x00", 107-len(name))
		}
		conn, err := net.Dial("unix", address)
		if err != nil {
			t.Fatalf("tight %v: %v", tight, err)
		}
		_ = conn.Close()
		if _, err := ListenAbstract(name, tight); err == nil {
			t.Error("a name was taken twice")
		}
		_ = l.Close()
	}
}

func TestPortRange(t *testing.T) {
	first, err := ListenTCP(t.Context(), "tcp", "127.0.0.1", "0")
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	_, port, _ := net.SplitHostPort(first.Addr().String())
	n, _ := strconv.ParseUint(port, 10, 16)
	if n > 65000 {
		t.Skip("no ports above")
	}
	second, err := ListenTCPRange(t.Context(), "tcp", "127.0.0.1", port, uint16(n+500))
	if err != nil {
		t.Fatal(err)
	}
	_ = second.Close()
	if _, err := ListenTCPRange(t.Context(), "tcp", "127.0.0.1", port, uint16(n)); err == nil {
		t.Error("a port was taken twice")
	}
	if _, err := ListenTCPRange(t.Context(), "tcp", "127.0.0.1", port, uint16(n-1)); err == nil {
		t.Error("an empty range of ports")
	}
}

func TestKeepAlive(t *testing.T) {
	l, err := ListenTCP(t.Context(), "tcp", "127.0.0.1", "0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	tune(conn)
	raw, err := conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	_ = raw.Control(func(fd uintptr) {
		for option, want := range map[int]int{unix.TCP_KEEPIDLE: 60, unix.TCP_KEEPINTVL: 15, unix.TCP_KEEPCNT: 4} {
			if got, err := unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, option); err != nil || got != want {
				t.Errorf("option %d is %d, %v; want %d", option, got, err, want)
			}
		}
	})
}
