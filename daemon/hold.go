// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"net"
	"sync"
)

// hold returns a listener that takes no clients before the command line is carried out. They wait in the queue of the socket, which
// is there from the start: whoever is let in finds everything that the command line makes. That matters most for a socket that was
// inherited, whose clients may come before the daemon does.
func (d *Daemon) hold(l net.Listener) net.Listener {
	return &heldListener{Listener: l, started: d.started, closed: make(chan struct{})}
}

type heldListener struct {
	net.Listener
	started <-chan struct{}
	closed  chan struct{}
	once    sync.Once
}

func (l *heldListener) Accept() (net.Conn, error) {
	select {
	case <-l.started:
		return l.Listener.Accept()
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *heldListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Listener.Close()
}
