// SPDX-License-Identifier: Apache-2.0

package nbd

import (
	"context"
	"fmt"
	"time"

	"github.com/blkmirror/blkmirror/block"
	wire "github.com/blkmirror/blkmirror/block/nbd"
)

// Pauses between attempts to connect. A session that did not last for steady counts as an attempt, and as one that failed
// if the server answered nothing in it.
const (
	firstPause   = 10 * time.Millisecond
	longestPause = time.Second
	steady       = 2 * time.Second
)

// lost takes note that a session ended.
func (d *Disk) lost(s *session) {
	d.cache.forget()
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.session.CompareAndSwap(s, nil) {
		return
	}
	state := Waiting
	if d.options.ReconnectDelay == 0 || d.mu.closed {
		d.mu.failure, state = s.cause(), Failing
	}
	d.mu.lostAt = time.Now()
	d.tellLocked(state, s.cause())
	d.announceLocked()
	d.losses <- s // has room: there is one session at a time, and only the keeper makes another
}

// keep is the keeper: it makes a new session whenever one was lost.
func (d *Disk) keep(ctx context.Context) {
	defer close(d.kept)
	pause := time.Duration(0)
	began := time.Now()
	for {
		select {
		case s := <-d.losses:
			s.wait()
			switch {
			case time.Since(began) > steady:
				pause = 0
			case s.answered():
				pause = firstPause
			}
			if !d.replace(ctx, s, &pause) {
				return
			}
			began = time.Now()
		case <-ctx.Done():
			return
		}
	}
}

// replace makes a new session in place of old. It returns false when there will be none any more.
func (d *Disk) replace(ctx context.Context, old *session, pause *time.Duration) bool {
	if d.options.Server.Network == "fd" {
		d.fail(Broken, fmt.Errorf("%w; a descriptor cannot be connected again", old.cause()))
		return false
	}
	if d.options.ReconnectDelay > 0 {
		d.mu.Lock()
		left := d.options.ReconnectDelay - time.Since(d.mu.lostAt)
		d.mu.Unlock()
		late := time.AfterFunc(left, func() { d.fail(Failing, old.cause()) })
		defer late.Stop()
	}
	for {
		if sleep(ctx, *pause) != nil {
			return false
		}
		*pause = min(max(2**pause, firstPause), longestPause)
		s, err := d.connect(ctx)
		if err != nil {
			continue // the cause of the loss is the better news to those who ask
		}
		if err := d.same(&s.export); err != nil {
			s.drop()
			d.fail(Broken, &block.Error{Kind: block.KindIO, Op: block.OpGraph, Err: err})
			return false
		}
		return d.resume(s)
	}
}

// fail makes requests fail from now on that find no session.
func (d *Disk) fail(state State, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.session.Load() == nil {
		d.mu.failure = err
		d.tellLocked(state, err)
		d.announceLocked()
	}
}

// resume begins to use a new session, when all who are registered know of it.
func (d *Disk) resume(s *session) bool {
	unflushed := d.writes.Load() > d.durable.Load()
	d.mu.Lock()
	var users []func(bool)
	for _, f := range d.mu.watchers {
		users = append(users, f)
	}
	d.mu.Unlock()
	for _, f := range users {
		f(unflushed)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.mu.closed {
		s.drop()
		return false
	}
	s.start()
	d.mu.failure = nil
	d.session.Store(s)
	d.tellLocked(Connected, nil)
	d.announceLocked()
	return true
}

// same is the error for a new session in which the export is another one.
func (d *Disk) same(e *export) error {
	was := limitsOf(&d.export)
	is := limitsOf(e)
	missing := d.export.flags &^ e.flags &^ wire.CanMultiConn &^ wire.Rotational
	why := ""
	switch {
	case e.size != d.export.size:
		why = fmt.Sprintf("has %d bytes now, not %d", e.size, d.export.size)
	case (e.flags^d.export.flags)&wire.ReadOnly != 0:
		why = "changed between read-only and writable"
	case missing != 0:
		why = fmt.Sprintf("cannot do any more what it could (flags %#x are missing)", uint16(missing))
	case is.RequestAlign > was.RequestAlign || is.MaxTransfer < was.MaxTransfer:
		why = fmt.Sprintf("takes requests of %d to %d bytes now, not of %d to %d", is.RequestAlign, is.MaxTransfer,
			was.RequestAlign, was.MaxTransfer)
	case d.options.Context != "" && !e.status:
		why = fmt.Sprintf("has no %s any more", d.options.Context)
	default:
		return nil
	}
	return fmt.Errorf("export '%s' of NBD server '%s' is not the same after the connection was lost: it %s; the node must be opened again",
		d.options.Export, d.options.Server, why)
}

// OnReconnect registers f, see [block.Reconnector].
func (d *Disk) OnReconnect(f func(unflushed bool)) (cancel func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.mu.lastID++
	id := d.mu.lastID
	d.mu.watchers[id] = f
	d.watchers.Add(1)
	return func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		if _, there := d.mu.watchers[id]; there {
			delete(d.mu.watchers, id)
			d.watchers.Add(-1)
		}
	}
}

// sleep waits, or returns why it should not.
func sleep(ctx context.Context, pause time.Duration) error {
	if pause == 0 {
		return ctx.Err()
	}
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
