// SPDX-License-Identifier: Apache-2.0

package nbd

import "github.com/blkmirror/blkmirror/block"

// State is how a disk stands with its server.
type State uint8

// The states, as the package comment draws them.
const (
	Connected State = iota
	Waiting         // the connection is lost, and requests wait for another one
	Failing         // requests fail; a new connection is still tried for
	Broken          // the server has something else now, and requests fail for good
)

// OnState has f called with each new state, in order, and at once if the connection is lost already. why is nil for
// Connected. f is called under a lock of the disk: it may not wait, nor call the disk. Only one f is there at a time, and the
// end of the disk is no news.
func (d *Disk) OnState(f func(s State, why error)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.mu.onState = f
	if d.mu.state != Connected {
		f(d.mu.state, d.mu.why)
	}
}

// Waiting is nil unless requests would wait now, see [block.ServerWaiter].
func (d *Disk) Waiting() <-chan struct{} {
	if d.session.Load() != nil {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.session.Load() != nil || d.mu.failure != nil {
		return nil
	}
	return d.mu.changed
}

// tellLocked notes a new state. It is told under the lock, so that states come in the order in which they were entered.
func (d *Disk) tellLocked(s State, why error) {
	if s == d.mu.state || d.mu.closed {
		return
	}
	d.mu.state, d.mu.why = s, why
	if d.mu.onState != nil {
		d.mu.onState(s, why)
	}
}

var _ block.ServerWaiter = (*Disk)(nil)
