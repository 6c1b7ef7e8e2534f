// SPDX-License-Identifier: Apache-2.0

package main

import (
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// testLine is a proxy before a server that hands out its connections.
func testLine(t *testing.T) (p *proxy, dial func() net.Conn, servers chan net.Conn) {
	t.Helper()
	dir, err := os.MkdirTemp("", "bmt") // a name that leaves room for sockets
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	l, err := net.Listen("unix", filepath.Join(dir, "server"))
	must(t, err)
	servers = make(chan net.Conn, 10)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			servers <- c
		}
	}()
	p, err = startProxy(filepath.Join(dir, "line"), filepath.Join(dir, "server"))
	must(t, err)
	t.Cleanup(func() {
		p.close()
		l.Close()
		<-ended
	})
	return p, func() net.Conn {
		c, err := net.Dial("unix", filepath.Join(dir, "line"))
		must(t, err)
		must(t, c.SetDeadline(time.Now().Add(10*time.Second)))
		t.Cleanup(func() { c.Close() })
		return c
	}, servers
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func accepted(t *testing.T, servers chan net.Conn) net.Conn {
	t.Helper()
	c := <-servers
	t.Cleanup(func() { c.Close() })
	must(t, c.SetDeadline(time.Now().Add(10*time.Second)))
	return c
}

func TestLineCarriesAndIsCut(t *testing.T) {
	p, dial, servers := testLine(t)
	client := dial()
	server := accepted(t, servers)
	buffer := make([]byte, 4)
	for _, pair := range [][2]net.Conn{{client, server}, {server, client}} {
		_, err := pair[0].Write([]byte("ping"))
		must(t, err)
		if _, err := io.ReadFull(pair[1], buffer); err != nil || string(buffer) != "ping" {
			t.Fatalf("%q arrived: %v", buffer, err)
		}
	}
	p.cut()
	for _, c := range []net.Conn{client, server} {
		if _, err := io.Copy(io.Discard, c); err != nil {
			t.Errorf("an end is not told: %v", err)
		}
	}
}

// What was sent before a late cut arrives when the line speaks again, after a new connection was made; then its end comes.
func TestLineIsLate(t *testing.T) {
	p, dial, servers := testLine(t)
	client := dial()
	server := accepted(t, servers)
	_, err := client.Write([]byte("aaaa"))
	must(t, err)
	buffer := make([]byte, 4)
	_, err = io.ReadFull(server, buffer)
	must(t, err)
	p.silence()
	_, err = client.Write([]byte("late"))
	must(t, err)
	// The line has it when nothing is left in the socket.
	must(t, until(t.Context(), 10*time.Second, "the line has what was sent", func() (bool, error) { return p.held.Load() > 0, nil }))
	deliver := p.cutLate()
	if _, err := io.Copy(io.Discard, client); err != nil {
		t.Errorf("the client is not told: %v", err)
	}
	// Whoever comes now is carried at once.
	again := dial()
	second := accepted(t, servers)
	_, err = again.Write([]byte("bbbb"))
	must(t, err)
	_, err = io.ReadFull(second, buffer)
	must(t, err)
	deliver()
	if rest, err := io.ReadAll(server); err != nil || string(rest) != "late" {
		t.Errorf("%q arrived: %v", rest, err)
	}
	must(t, p.settle(t.Context()))
}
