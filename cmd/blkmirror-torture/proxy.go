// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// proxy is a line between the daemon and the server of its target, that can be cut and can fall silent.
type proxy struct {
	listener net.Listener
	server   string // socket
	carriers sync.WaitGroup
	held     atomic.Int64 // carriers that have bytes in a silence

	mu struct {
		sync.Mutex
		lines  map[*line]bool
		silent chan struct{} // closed when what is sent is carried again; nil while it is
		closed bool
	}
}

// line is one connection.
type line struct {
	client, server net.Conn
	late           bool // the client's end is gone
}

func startProxy(socket, server string) (*proxy, error) {
	l, err := net.Listen("unix", socket)
	if err != nil {
		return nil, err
	}
	p := &proxy{listener: l, server: server}
	p.mu.lines = map[*line]bool{}
	p.carriers.Go(p.accept)
	return p, nil
}

func (p *proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return // closed
		}
		server, err := net.Dial("unix", p.server)
		if err != nil {
			client.Close() // as a line to a host that is off
			continue
		}
		l := &line{client: client, server: server}
		p.mu.Lock()
		if p.mu.closed {
			client.Close()
			server.Close()
		}
		p.mu.lines[l] = true
		p.mu.Unlock()
		p.carriers.Go(func() {
			var back sync.WaitGroup
			back.Go(func() {
				p.carry(client, server)
				client.Close()
			})
			p.carry(server, client)
			server.Close()
			back.Wait()
			p.mu.Lock()
			delete(p.mu.lines, l)
			p.mu.Unlock()
		})
	}
}

// mostHeld is how much is taken from one end in a silence, bytes.
const mostHeld = 1 << 20

// carry takes bytes from one end to the other until one of them is closed. While the line is silent it has them.
func (p *proxy) carry(to, from net.Conn) {
	buffer := make([]byte, 64<<10)
	for {
		n, err := from.Read(buffer)
		if n > 0 {
			p.mu.Lock()
			silent := p.mu.silent
			p.mu.Unlock()
			data := buffer[:n]
			if silent != nil {
				data, err = p.hold(from, data, silent)
			}
			if _, err := to.Write(data); err != nil {
				from.Close() // the other end is told
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// hold takes what comes until the silence ends.
func (p *proxy) hold(from net.Conn, first []byte, silent <-chan struct{}) (data []byte, err error) {
	data = make([]byte, len(first), mostHeld)
	copy(data, first)
	p.held.Add(1)
	defer p.held.Add(-1)
	for {
		select {
		case <-silent:
			_ = from.SetReadDeadline(time.Time{}) // fails on closed connections alone, and then so does what follows
			return data, err
		default:
		}
		if err != nil || len(data) == cap(data) {
			<-silent
			continue
		}
		_ = from.SetReadDeadline(time.Now().Add(time.Millisecond))
		var n int
		n, err = from.Read(data[len(data):cap(data)])
		data = data[:len(data)+n]
		if errors.Is(err, os.ErrDeadlineExceeded) {
			err = nil
		}
	}
}

// silence makes the line take bytes and not carry them.
func (p *proxy) silence() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.mu.silent == nil {
		p.mu.silent = make(chan struct{})
	}
}

// speak ends a silence: what was sent meanwhile arrives, also where only one end is there by now.
func (p *proxy) speak() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.mu.silent != nil {
		close(p.mu.silent)
		p.mu.silent = nil
	}
}

// cut ends all connections at once.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for l := range p.mu.lines {
		l.client.Close()
		l.server.Close()
	}
}

// cutLate ends all connections at the client's end. The server does not know yet: what it was sent in the silence, which ends
// for those who come, arrives when deliver is called.
func (p *proxy) cutLate() (deliver func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for l := range p.mu.lines {
		l.client.Close()
		l.late = true
	}
	late := p.mu.silent
	p.mu.silent = nil
	return func() { close(late) }
}

// settle waits until what was late has arrived: no connection is left that has one end only.
func (p *proxy) settle(ctx context.Context) error {
	return until(ctx, startLimit, "late requests arrive", func() (bool, error) {
		p.mu.Lock()
		defer p.mu.Unlock()
		for l := range p.mu.lines {
			if l.late {
				return false, nil
			}
		}
		return true, nil
	})
}

// close ends the line for good.
func (p *proxy) close() {
	p.listener.Close()
	p.speak()
	p.mu.Lock()
	p.mu.closed = true
	p.mu.Unlock()
	p.cut()
	p.carriers.Wait()
}
