// SPDX-License-Identifier: Apache-2.0

package nbdserver

import (
	"context"
	"errors"
	"math/bits"
	"slices"
	"sync"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/export"
	"github.com/blkmirror/blkmirror/block/nbd"
)

// Type is the type of the exports of this package.
const Type = "nbd"

// Config describes an export.
type Config struct {
	ID           string
	Node         *block.Node
	Name         string // what clients ask for; the name of the node if empty
	Description  string
	Writable     bool
	WriteThrough bool // every write is durable before it is answered

	AllocationDepth bool                 // clients may ask which layer decides what an extent reads as
	Bitmaps         []*block.DirtyBitmap // clients may ask what is dirty in them; busy while the export lives
}

// Export is one node under one name.
type Export struct {
	config   Config
	contexts []metaContext // what block status can tell
	server   *Server
	backend  *block.Backend
	stop     chan struct{} // holds a token: the right to stop the export

	mu struct {
		sync.Mutex
		sessions map[*session]struct{}
		past     Traffic       // of sessions that have ended
		stopping bool          // no more sessions
		stopped  bool          // the node is free
		empty    chan struct{} // closed when the last session is gone; nil while nobody waits for that
	}
}

var _ export.Export = (*Export)(nil)

// ID is the id of the export.
func (e *Export) ID() string { return e.config.ID }

// Type is [Type].
func (e *Export) Type() string { return Type }

// Name is what clients ask for.
func (e *Export) Name() string { return e.config.Name }

// Node is the node that the export shows at present.
func (e *Export) Node() *block.Node { return e.backend.Node() }

// ShuttingDown says whether the export takes no more clients.
func (e *Export) ShuttingDown() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.mu.stopping
}

// attach makes the export stand on the top of its node.
func (e *Export) attach(ctx context.Context, graph *block.Graph) error {
	return graph.Change(ctx, func(tx *block.Tx) error {
		top := graph.Top(e.config.Node)
		need := block.PermConsistentRead
		if e.config.Writable {
			if e.config.Node.Options().ReadOnly || top.Options().ReadOnly {
				return fail(block.KindReadOnly, "Cannot export read-only node as writable")
			}
			need |= block.PermWrite
		}
		if err := e.reserveBitmaps(tx); err != nil {
			return err
		}
		backend, err := tx.Attach(top, "export '"+e.config.ID+"'", need, block.PermAll&^block.PermResize)
		e.backend = backend
		return err
	})
}

// reserveBitmaps keeps everybody else from changing the bitmaps of the export.
func (e *Export) reserveBitmaps(tx *block.Tx) error {
	for i, b := range e.config.Bitmaps {
		info := b.Info()
		switch {
		case !e.config.Writable && !e.config.Node.Options().ReadOnly && info.Recording:
			return fail(block.KindInvalid, "Enabled bitmap '%s' incompatible with readonly export", b.Name())
		case b.Size() != e.config.Node.Size():
			return fail(block.KindInvalid, "Bitmap '%s' is of a disk of %d bytes, but node '%s' has %d", b.Name(), b.Size(),
				e.config.Node.Name(), e.config.Node.Size())
		case slices.ContainsFunc(e.config.Bitmaps[:i], func(other *block.DirtyBitmap) bool { return other.Name() == b.Name() }):
			return fail(block.KindExists, "An export cannot have two bitmaps named '%s'", b.Name())
		}
		if err := b.SetBusy(true); err != nil {
			return err
		}
		tx.OnRollBack(func() { _ = b.SetBusy(false) })
	}
	return nil
}

// enter counts a session in; false if the export takes no more.
func (e *Export) enter(s *session) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.mu.stopping {
		return false
	}
	e.mu.sessions[s] = struct{}{}
	return true
}

func (e *Export) leave(s *session) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.mu.sessions, s)
	e.mu.past.add(s.traffic.read())
	if len(e.mu.sessions) == 0 && e.mu.empty != nil {
		close(e.mu.empty)
		e.mu.empty = nil
	}
}

// Stop ends the export, see [export.Export].
func (e *Export) Stop(ctx context.Context, hard bool) error {
	sessions, err := e.close(hard)
	if err != nil {
		return err
	}
	for _, s := range sessions {
		s.kill(errRemoved)
	}
	select {
	case e.stop <- struct{}{}:
		defer func() { <-e.stop }()
	case <-ctx.Done():
		return &block.Error{Kind: block.KindShutdown, Op: block.OpGraph, Err: context.Cause(ctx)}
	}
	if err := e.waitEmpty(ctx); err != nil {
		return err
	}
	if e.hasStopped() {
		return nil
	}
	if err := e.server.graph.Change(ctx, func(tx *block.Tx) error {
		tx.Detach(e.backend)
		tx.OnCommit(func() error {
			for _, b := range e.config.Bitmaps {
				_ = b.SetBusy(false) // to give back never fails
			}
			return nil
		})
		return nil
	}); err != nil {
		return err
	}
	e.mu.Lock()
	e.mu.stopped = true
	e.mu.Unlock()
	e.server.forget(e)
	return nil
}

var errRemoved = errors.New("the export was removed")

// close keeps further sessions out, and lists those that must be ended.
func (e *Export) close(hard bool) ([]*session, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	var sessions []*session
	for s := range e.mu.sessions {
		if hard {
			sessions = append(sessions, s)
		} else if !s.leaving() && !e.mu.stopping {
			return nil, export.InUse(e.config.ID)
		}
	}
	e.mu.stopping = true
	return sessions, nil
}

func (e *Export) waitEmpty(ctx context.Context) error {
	e.mu.Lock()
	if len(e.mu.sessions) == 0 {
		e.mu.Unlock()
		return nil
	}
	if e.mu.empty == nil {
		e.mu.empty = make(chan struct{})
	}
	empty := e.mu.empty
	e.mu.Unlock()
	select {
	case <-empty:
		return nil
	case <-ctx.Done():
		return &block.Error{Kind: block.KindShutdown, Op: block.OpGraph, Err: context.Cause(ctx)}
	}
}

func (e *Export) hasStopped() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.mu.stopped
}

// blockSizes are the requests that the export takes and likes.
func (e *Export) blockSizes(most uint64) nbd.BlockSizes {
	preferred := int64(4096)
	if g := e.Node().Limits().Granularity; g > preferred && bits.OnesCount64(uint64(g)) == 1 {
		preferred = min(g, int64(most))
	}
	return nbd.BlockSizes{Minimum: 1, Preferred: uint32(preferred), Maximum: uint32(most)}
}
