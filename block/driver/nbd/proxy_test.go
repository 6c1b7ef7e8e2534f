// SPDX-License-Identifier: Apache-2.0

package nbd

import (
	"io"
	"net"
	"path/filepath"
	"sync"
	"testing"
)

// proxy stands between a disk and its server, and is the network that fails.
type proxy struct {
	t        testing.TB
	path, to string
	wg       sync.WaitGroup

	mu struct {
		sync.Mutex
		listener net.Listener
		conns    map[net.Conn]bool // both sides
		frozen   chan struct{}     // not nil while nothing is passed on; closed when that ends
	}
}

func newProxy(t testing.TB, to string) *proxy {
	t.Helper()
	p := &proxy{t: t, path: filepath.Join(t.TempDir(), "proxy"), to: to}
	p.mu.conns = map[net.Conn]bool{}
	p.up()
	t.Cleanup(func() {
		p.thaw()
		p.down()
		p.wg.Wait()
	})
	return p
}

// up lets new connections in.
func (p *proxy) up() {
	p.t.Helper()
	l, err := net.Listen("unix", p.path)
	must(p.t, err)
	p.mu.Lock()
	p.mu.listener = l
	p.mu.Unlock()
	p.wg.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("unix", p.to)
			if err != nil {
				_ = client.Close()
				continue
			}
			p.mu.Lock()
			p.mu.conns[client], p.mu.conns[server] = true, true
			gone := p.mu.listener != l
			p.mu.Unlock()
			if gone {
				_ = client.Close()
			}
			p.wg.Go(func() { p.pass(server, client) })
			p.wg.Go(func() { p.pass(client, server) })
		}
	})
}

func (p *proxy) pass(to, from net.Conn) {
	defer to.Close()
	b := make([]byte, 64<<10)
	for {
		n, err := from.Read(b)
		p.mu.Lock()
		frozen := p.mu.frozen
		p.mu.Unlock()
		if frozen != nil {
			<-frozen
		}
		if n > 0 {
			if _, err := to.Write(b[:n]); err != nil {
				_, _ = io.Copy(io.Discard, from)
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// down refuses new connections and cuts those that are there.
func (p *proxy) down() {
	p.mu.Lock()
	l := p.mu.listener
	p.mu.listener = nil
	p.mu.Unlock()
	if l != nil {
		_ = l.Close()
	}
	p.cut()
}

// cut ends all connections.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.mu.conns {
		_ = c.Close()
		delete(p.mu.conns, c)
	}
}

// freeze passes nothing on any more, in both directions.
func (p *proxy) freeze() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mu.frozen = make(chan struct{})
}

func (p *proxy) thaw() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.mu.frozen != nil {
		close(p.mu.frozen)
		p.mu.frozen = nil
	}
}

// throughProxy is the way to the house through a proxy.
func (h *house) throughProxy(o Options) (*proxy, Options) {
	h.t.Helper()
	p := newProxy(h.t, h.path)
	o = h.with(o)
	o.Server.Address = p.path
	return p, o
}
