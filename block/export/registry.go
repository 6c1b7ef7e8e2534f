// SPDX-License-Identifier: Apache-2.0

package export

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/blkmirror/blkmirror/block"
)

// Export is a node that clients can reach. All methods may be called at any time.
type Export interface {
	ID() string
	Type() string
	// Node is the node that the export shows at present.
	Node() *block.Node
	// ShuttingDown says whether the export takes no more clients and is about to go.
	ShuttingDown() bool
	// Stop ends the export and frees its node. Unless hard, it fails with KindBusy and nothing is changed if a client is
	// connected. When ctx ends too early the export is still there, shutting down, and Stop can be called again. A Stop
	// of what has stopped succeeds.
	Stop(ctx context.Context, hard bool) error
}

// Registry is the list of a daemon's exports. Ids are unique in it.
type Registry struct {
	deleted func(id string)

	mu struct {
		sync.Mutex
		exports  []Export            // oldest first
		reserved map[string]struct{} // ids of exports being made
	}
}

// NewRegistry returns an empty list. deleted, if not nil, is called when an export is gone, before the Remove that ended
// it returns.
func NewRegistry(deleted func(id string)) *Registry {
	if deleted == nil {
		deleted = func(string) {}
	}
	r := &Registry{deleted: deleted}
	r.mu.reserved = map[string]struct{}{}
	return r
}

// Add lists the export that create makes. The id belongs to it before create is called.
func (r *Registry) Add(id string, create func() (Export, error)) error {
	if err := r.reserve(id); err != nil {
		return err
	}
	e, err := create()
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.mu.reserved, id)
	if err == nil {
		r.mu.exports = append(r.mu.exports, e)
	}
	return err
}

func (r *Registry) reserve(id string) error {
	if !block.WellFormedID(id) {
		return fail(block.KindInvalid, "Invalid block export id")
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, taken := r.mu.reserved[id]; taken || r.findLocked(id) != nil {
		return fail(block.KindExists, "Block export id '%s' is already in use", id)
	}
	r.mu.reserved[id] = struct{}{}
	return nil
}

// Find returns the export with an id.
func (r *Registry) Find(id string) (Export, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if e := r.findLocked(id); e != nil {
		return e, nil
	}
	return nil, fail(block.KindNotFound, "Export '%s' is not found", id)
}

func (r *Registry) findLocked(id string) Export {
	for _, e := range r.mu.exports {
		if e.ID() == id {
			return e
		}
	}
	return nil
}

// List tells the exports, the newest first.
func (r *Registry) List() []Export {
	r.mu.Lock()
	defer r.mu.Unlock()
	list := slices.Clone(r.mu.exports)
	slices.Reverse(list)
	return list
}

// Remove ends an export and takes it off the list.
func (r *Registry) Remove(ctx context.Context, id string, hard bool) error {
	e, err := r.Find(id)
	if err != nil {
		return err
	}
	return r.remove(ctx, e, hard)
}

// RemoveAll ends the exports that match, hard and the newest first. It goes on after a failure.
func (r *Registry) RemoveAll(ctx context.Context, match func(Export) bool) error {
	var errs []error
	for _, e := range r.List() {
		if match(e) {
			errs = append(errs, r.remove(ctx, e, true))
		}
	}
	return errors.Join(errs...)
}

func (r *Registry) remove(ctx context.Context, e Export, hard bool) error {
	if err := e.Stop(ctx, hard); err != nil {
		return err
	}
	r.mu.Lock()
	at := slices.Index(r.mu.exports, e)
	if at >= 0 {
		r.mu.exports = slices.Delete(r.mu.exports, at, at+1)
	}
	r.mu.Unlock()
	if at >= 0 { // else somebody else removed it at the same time
		r.deleted(e.ID())
	}
	return nil
}

// InUse is the error of a Stop that is not hard while a client is connected.
func InUse(id string) error { return fail(block.KindBusy, "export '%s' still in use", id) }

func fail(kind block.Kind, format string, args ...any) error {
	return &block.Error{Kind: kind, Op: block.OpGraph, Err: fmt.Errorf(format, args...)}
}
