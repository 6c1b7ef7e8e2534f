// SPDX-License-Identifier: Apache-2.0

package handlers

import (
	"context"
	"maps"
	"sync"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/qmp/api"
)

// jobNodes carries what jobs do to nodes over to the commands. A job that ends does so in a goroutine of its own, while what
// nodes were opened with belongs to the commands: what it changes there waits for the next one.
type jobNodes struct {
	mu struct {
		sync.Mutex
		notes    []func()
		readOnly map[*block.Node]*reopening // planned when the node was made writable for a job
	}
}

// takeNotes brings what nodes were opened with up to date.
func (h *Handlers) takeNotes() {
	h.jobNodes.mu.Lock()
	notes := h.jobNodes.mu.notes
	h.jobNodes.mu.notes = nil
	h.jobNodes.mu.Unlock()
	for _, f := range notes {
		f()
	}
}

// reopenForJob makes a node writable when a job starts, and read-only when it ends.
func (h *Handlers) reopenForJob(ctx context.Context, n *block.Node, readOnly bool) error {
	if readOnly {
		return h.closeForJob(ctx, n)
	}
	ctx = context.WithoutCancel(ctx) // the way back is taken later
	back := h.newReopening()
	err := h.graph.Change(ctx, func(tx *block.Tx) error {
		r := h.newReopening()
		r.readOnly[n] = false
		if err := r.carryOut(ctx, tx, []*block.Node{n}); err != nil {
			return err
		}
		back.readOnly[n] = true
		return back.plan(ctx, n)
	})
	if err != nil {
		return err
	}
	for i := range back.changes {
		back.changes[i].Children = nil // the job may give it others
	}
	h.jobNodes.mu.Lock()
	defer h.jobNodes.mu.Unlock()
	if h.jobNodes.mu.readOnly == nil {
		h.jobNodes.mu.readOnly = map[*block.Node]*reopening{}
	}
	h.jobNodes.mu.readOnly[n] = back
	return nil
}

// backForJobs is what becomes of nodes when the jobs have ended that need others to be writable, by these others.
func (h *Handlers) backForJobs() map[*block.Node]map[*block.Node]openedNode {
	h.jobNodes.mu.Lock()
	defer h.jobNodes.mu.Unlock()
	if len(h.jobNodes.mu.readOnly) == 0 {
		return nil
	}
	back := map[*block.Node]map[*block.Node]openedNode{}
	for n, r := range h.jobNodes.mu.readOnly {
		back[n] = map[*block.Node]openedNode{}
		for m, o := range r.becomes {
			back[n][m] = *o
		}
	}
	return back
}

// leaveWritable has a node that was made writable for a job stay so, if the change holds.
func (h *Handlers) leaveWritable(tx *block.Tx, n *block.Node) {
	h.jobNodes.mu.Lock()
	defer h.jobNodes.mu.Unlock()
	was := h.kept.known.back
	h.kept.known.back = maps.Clone(was)
	tx.OnRollBack(func() { h.kept.known.back = was })
	for of := range h.jobNodes.mu.readOnly {
		if of.Unfiltered() != n.Unfiltered() {
			continue
		}
		delete(h.kept.known.back, of)
		tx.OnCommit(func() error {
			h.jobNodes.mu.Lock()
			defer h.jobNodes.mu.Unlock()
			delete(h.jobNodes.mu.readOnly, of)
			return nil
		})
	}
}

func (h *Handlers) closeForJob(ctx context.Context, n *block.Node) error {
	h.jobNodes.mu.Lock()
	back := h.jobNodes.mu.readOnly[n]
	delete(h.jobNodes.mu.readOnly, n)
	h.jobNodes.mu.Unlock()
	if back == nil {
		return nil
	}
	return h.graph.Change(ctx, func(tx *block.Tx) error {
		if found, err := h.graph.Node(n.Name()); err != nil || found != n {
			return nil // it was closed
		}
		if err := tx.Reopen(ctx, back.changes); err != nil {
			return err
		}
		h.jobNodes.mu.Lock()
		defer h.jobNodes.mu.Unlock()
		h.jobNodes.mu.notes = append(h.jobNodes.mu.notes, func() {
			for n, o := range back.becomes {
				h.opened[n] = o
			}
		})
		return nil
	})
}

// orphan gives nodes options of their own whose parents are gone: a job may take a node out of a chain, but not those below it.
func (h *Handlers) orphan() {
	for n, o := range h.opened {
		if o.parent == nil {
			continue
		}
		if found, err := h.graph.Node(o.parent.Name()); err == nil && found == o.parent {
			continue
		}
		orphan := *o
		orphan.options, orphan.parent = o.own(), nil
		h.opened[n] = &orphan
	}
}

// own are the options of a node that inherits from nobody any more.
func (o *openedNode) own() *api.BlockdevOptions {
	own, r := *o.options, o.resolved
	own.ReadOnly, own.AutoReadOnly, own.ForceShare = &r.ReadOnly, &r.autoReadOnly, &r.ForceShare
	own.Cache = &api.BlockdevCacheOptions{Direct: &r.Direct, NoFlush: &r.NoFlush}
	if own.Discard == "" && r.Discard {
		own.Discard = api.BlockdevDiscardOptionsUnmap
	}
	return &own
}
