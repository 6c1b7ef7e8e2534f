// SPDX-License-Identifier: Apache-2.0

package handlers

import (
	"context"
	"errors"
	"maps"
	"slices"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/bitmap"
	"github.com/blkmirror/blkmirror/daemon/state"
	"github.com/blkmirror/blkmirror/qmp/api"
)

// What commands make is recorded in the state directory, if there is one, before they are answered. The record is a picture of
// what there is, taken while the graph is locked and before the change that is being made holds: if it cannot be written, the
// change is taken back like any other that fails. A job that has done its work has that recorded in the same way, before guests go
// on; it runs in no command, so it works with what the last command knew.

// kept is what the record needs besides the graph.
type kept struct {
	Record
	on      bool // changes are recorded
	server  *api.NbdServerOptions
	exports []*api.BlockExportOptions // as they were given, the oldest first
	given   map[string]given          // what the command line gave
	known   knowledge                 // of the last command; belongs to who holds the graph
	stands  map[string]string         // the names of the nodes that exports stand on, by id; belongs to who holds the graph
	jobs    []*keptJob                // the oldest first; belongs to who holds the graph
	waiting *[]func()                 // the first work of jobs, while the daemon starts; else nil
}

// given is what the command line gave under one name.
type given struct {
	text []byte // the definition
	base []byte // what a picture shows of it while it is not changed; nil if the state has changed it from the start
}

// knowledge is what the commands know and jobs must not look at.
type knowledge struct {
	opened  map[*block.Node]openedNode
	objects []state.Item
	server  *api.NbdServerOptions
	exports []*api.BlockExportOptions
	back    map[*block.Node]map[*block.Node]openedNode // what becomes of nodes when a job ends that made one writable, by that one
}

func (h *Handlers) knowledge() knowledge {
	k := knowledge{opened: map[*block.Node]openedNode{}, back: h.backForJobs(), server: h.kept.server, exports: slices.Clone(h.kept.exports)}
	for n, o := range h.opened {
		k.opened[n] = *o
	}
	for _, id := range slices.Sorted(maps.Keys(h.objects)) {
		k.objects = append(k.objects, state.Item{Definition: definitionText(h.objects[id].definition(id))})
	}
	return k
}

// change runs f as [block.Graph.Change] does, and records what came of it.
func (h *Handlers) change(ctx context.Context, f func(tx *block.Tx) error) error {
	if !h.kept.on {
		return h.graph.Change(ctx, f)
	}
	var undone error
	err := h.graph.Change(ctx, func(tx *block.Tx) error {
		if err := f(tx); err != nil {
			return err
		}
		if err := tx.ApplyPermissions(ctx); err != nil { // what is recorded must be possible
			return err
		}
		was := h.kept.known
		h.kept.known = h.knowledge()
		tx.OnRollBack(func() { h.kept.known = was })
		return h.record(tx, nil, &undone)
	})
	return errors.Join(err, undone)
}

// note records what do did outside the graph; undo takes it back if that cannot be recorded.
func (h *Handlers) note(ctx context.Context, undo func()) error {
	if !h.kept.on {
		return nil
	}
	begun := false
	err := h.change(ctx, func(tx *block.Tx) error {
		begun = true
		tx.OnRollBack(undo)
		return nil
	})
	if err != nil && !begun {
		undo()
	}
	return err
}

// record writes a picture of everything. The change that tx makes holds only if it could be written.
func (h *Handlers) record(tx *block.Tx, p *pivot, undone *error) error {
	picture := h.picture(p)
	if err := h.kept.Dir.Save(picture.State); err != nil {
		return err
	}
	was := h.kept.stands
	h.kept.stands = picture.stands
	tx.OnRollBack(func() {
		h.kept.stands = was
		*undone = h.kept.Dir.Revert()
	})
	return nil
}

// recordEnd records the contents of bitmaps when nobody writes to disks any more. It returns what it recorded.
func (h *Handlers) recordEnd(ctx context.Context) (s *state.State, err error) {
	if !h.kept.on {
		return nil, nil
	}
	h.takeNotes()
	err = h.graph.Change(ctx, func(*block.Tx) error {
		h.kept.known = h.knowledge()
		s = h.picture(nil).State
		for i := range s.Bitmaps {
			_, b, err := h.bitmap(s.Bitmaps[i].Node, s.Bitmaps[i].Name)
			if err != nil {
				return err
			}
			bits := b.Snapshot()
			c, err := h.kept.Dir.SaveContents(i, bits.AppendBytes(nil, 0, bitmapBytes(bits)))
			if err != nil {
				return err
			}
			c.Disk = bits.Size()
			s.Bitmaps[i].Contents = c
		}
		if len(s.Bitmaps) > 0 {
			// The names of those files must not be lost where that of the state is not.
			if err := h.kept.Dir.Sync(); err != nil {
				return err
			}
		}
		return h.kept.Dir.Save(s)
	})
	return s, err
}

func bitmapBytes(b *bitmap.Bitmap) int { return int((b.All().Len() + 7) / 8) }
