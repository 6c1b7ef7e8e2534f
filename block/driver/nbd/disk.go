// SPDX-License-Identifier: Apache-2.0

package nbd

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/blkmirror/blkmirror/block"
	wire "github.com/blkmirror/blkmirror/block/nbd"
)

// sector is what sizes are rounded up to, bytes.
const sector = 512

var errClosed = errors.New("the node was closed")

// Disk is an export of a server.
type Disk struct {
	options Options
	export  export // as the first session had it; later ones must be able to do the same
	limits  block.Limits

	session atomic.Pointer[session] // nil while there is none
	losses  chan *session           // sessions that the keeper has to replace; holds one
	cancel  context.CancelFunc      // ends the keeper
	kept    chan struct{}           // closed when the keeper has ended

	cache     extents
	leftovers leftovers
	suspects  suspects

	// Writes that the server answered, and up to which of them a flush has made them durable.
	writes  atomic.Uint64
	durable atomic.Uint64

	watchers atomic.Int32 // entries of mu.watchers

	mu struct {
		sync.Mutex
		failure  error         // why requests fail that find no session; nil if they wait for one
		closed   bool          // Close was called
		changed  chan struct{} // closed, and replaced, when session or failure changed
		lostAt   time.Time
		watchers map[uint64]func(unflushed bool)
		lastID   uint64
		state    State
		why      error // of state
		onState  func(State, error)
	}
}

// Open connects to a server. It tries for as long as the options say.
func Open(ctx context.Context, o Options) (*Disk, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	d := &Disk{options: o, losses: make(chan *session, 1), kept: make(chan struct{})}
	d.mu.changed, d.mu.watchers = make(chan struct{}), map[uint64]func(bool){}
	s, err := d.connectWithin(ctx, o.OpenTimeout)
	if err != nil {
		return nil, err
	}
	d.export = s.export
	if err := d.accept(&s.export); err != nil {
		s.drop()
		return nil, err
	}
	d.limits = limitsOf(&d.export)
	keeperCtx, cancel := context.WithCancel(context.Background()) // the keeper's life, ended by Close
	d.cancel = cancel
	d.session.Store(s)
	s.start()
	go d.keep(keeperCtx)
	return d, nil
}

// connectWithin connects, again and again for as long as limit; once if that is zero.
func (d *Disk) connectWithin(ctx context.Context, limit time.Duration) (*session, error) {
	if limit == 0 {
		return d.connect(ctx)
	}
	limited, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	pause := firstPause
	for {
		s, err := d.connect(limited)
		if err == nil || d.options.Server.Network == "fd" {
			return s, err
		}
		if sleep(limited, pause) != nil {
			return nil, err
		}
		pause = min(2*pause, longestPause)
	}
}

// accept is the error for an export that cannot be what the options want.
func (d *Disk) accept(e *export) error {
	switch {
	case e.flags&wire.ReadOnly != 0 && !d.options.ReadOnly && !d.options.AutoReadOnly:
		return &block.Error{Kind: block.KindReadOnly, Op: block.OpOpen, Err: fmt.Errorf(
			"Export '%s' of NBD server '%s' is read-only; it can be opened with read-only or auto-read-only",
			d.options.Export, d.options.Server)}
	case d.options.Context != "" && !e.status:
		return invalid("requested x-dirty-bitmap %s not found", d.options.Context)
	}
	return nil
}

// limitsOf are the constraints on requests to an export.
func limitsOf(e *export) block.Limits {
	s := e.sizes
	if s.Minimum == 0 { // the server did not say, and the protocol has values for that
		s.Minimum, s.Maximum = sector, wire.MaxPayload
		if e.size%sector != 0 {
			s.Minimum = 1
		}
	}
	// What the server prefers is no unit of change: most say 4 KiB and mean the page of their cache.
	return block.Limits{RequestAlign: int64(s.Minimum), MaxTransfer: int64(min(s.Maximum, wire.MaxPayload) &^ (s.Minimum - 1))}
}

// Size is the length of the export, rounded up to whole sectors.
func (d *Disk) Size() int64 { return (d.export.size + sector - 1) &^ (sector - 1) }

// Limits are the server's.
func (d *Disk) Limits() block.Limits { return d.limits }

// ReadOnly says whether the server lets nobody write.
func (d *Disk) ReadOnly() bool { return d.can(wire.ReadOnly) }

// FileName tells the export as a URI.
func (d *Disk) FileName() string {
	return d.options.Server.FileName(d.options.Export, d.options.TLS != nil)
}

// SetPermissions refuses writers where the server lets nobody write.
func (d *Disk) SetPermissions(need, _ block.Perm) error {
	if need&(block.PermWrite|block.PermWriteUnchanged) != 0 && d.ReadOnly() {
		return &block.Error{Kind: block.KindReadOnly, Op: block.OpGraph,
			Err: fmt.Errorf("Export '%s' of NBD server '%s' is read-only", d.options.Export, d.options.Server)}
	}
	return nil
}

// do carries out a request, on later sessions again where that is right. The caller owns r afterwards only if there is no
// error.
func (d *Disk) do(ctx context.Context, r *request) error {
	suspect, changes := false, r.changes()
	var until time.Time // when sessions that come and go have had enough time
	for {
		s, err := d.ready(ctx, r)
		if err != nil {
			r.recycle()
			return suspectIf(suspect, err)
		}
		result := s.carryOut(ctx, r)
		if result.err == nil {
			return nil
		}
		suspect = suspect || changes && result.under && (result.lost || result.gone)
		if result.gone {
			return suspectIf(suspect, result.err)
		}
		now := time.Now()
		if until.IsZero() {
			until = now.Add(d.options.ReconnectDelay)
		}
		if !result.lost || !now.Before(until) || result.under && !r.repeatable() && d.watchers.Load() > 0 {
			r.recycle()
			if result.lost && d.options.ReconnectDelay > 0 {
				result.err = fmt.Errorf("%w: %w", block.ErrDisconnected, result.err)
			}
			return suspectIf(suspect, result.err)
		}
		r.again()
	}
}

// ready is the session for a request that may be sent now. A request that nobody wants any more is not.
func (d *Disk) ready(ctx context.Context, r *request) (*session, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if err := d.leftovers.wait(ctx, r); err != nil {
		return nil, err
	}
	return d.current(ctx)
}

func suspectIf(suspect bool, err error) error {
	if suspect {
		return block.Suspect(err)
	}
	return err
}

// current is the session, waited for if there may be one soon.
func (d *Disk) current(ctx context.Context) (*session, error) {
	for {
		if s := d.session.Load(); s != nil {
			return s, nil
		}
		d.mu.Lock()
		s, failure, changed := d.session.Load(), d.mu.failure, d.mu.changed
		d.mu.Unlock()
		switch {
		case s != nil:
			return s, nil
		case failure != nil:
			return nil, failure
		case !block.MayWait(ctx):
			return nil, &block.Error{Kind: block.KindIO, Op: block.OpGraph, Err: block.ErrDisconnected}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// announceLocked wakes those who wait for a session.
func (d *Disk) announceLocked() {
	close(d.mu.changed)
	d.mu.changed = make(chan struct{})
}

// Close ends the session. A server that is gone is not waited for.
func (d *Disk) Close() error {
	d.mu.Lock()
	again := d.mu.closed
	d.mu.closed = true
	d.mu.Unlock()
	d.cancel()
	<-d.kept
	if again {
		return nil
	}
	select {
	case s := <-d.losses: // just now; the keeper did not get to it
		s.wait()
	default:
	}
	if s := d.session.Load(); s != nil {
		s.leave()
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.mu.failure = &block.Error{Kind: block.KindShutdown, Op: block.OpGraph, Err: errClosed}
	d.announceLocked()
	return nil
}

var (
	_ block.Driver           = (*Disk)(nil)
	_ block.ZeroWriter       = (*Disk)(nil)
	_ block.ZeroUnmapper     = (*Disk)(nil)
	_ block.Discarder        = (*Disk)(nil)
	_ block.StatusReporter   = (*Disk)(nil)
	_ block.Limiter          = (*Disk)(nil)
	_ block.FileNamer        = (*Disk)(nil)
	_ block.PermissionHolder = (*Disk)(nil)
	_ block.Reconnector      = (*Disk)(nil)
	_ block.SuspectReporter  = (*Disk)(nil)
)
