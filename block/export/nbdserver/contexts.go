// SPDX-License-Identifier: Apache-2.0

package nbdserver

import (
	"context"
	"slices"
	"strings"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/nbd"
)

// maxContexts is the most metadata contexts that one client may select. Every one of them takes space in replies.
const maxContexts = 64

// metaContext is something that block status can tell about an export.
type metaContext struct {
	nbd.MetaContext
	extent func(ctx context.Context, disk *block.Edge, off, n int64) (length int64, state uint64, err error)
}

// contextsOf are all metadata contexts of an export; ids count from 1.
func contextsOf(c *Config) []metaContext {
	list := []metaContext{{nbd.MetaContext{ID: 1, Name: nbd.BaseAllocation}, allocation}}
	if c.AllocationDepth {
		list = append(list, metaContext{nbd.MetaContext{ID: 2, Name: nbd.AllocationDepth}, depth})
	}
	for i, b := range c.Bitmaps {
		list = append(list, metaContext{nbd.MetaContext{ID: uint32(i) + 3, Name: nbd.DirtyBitmapPrefix + b.Name()}, dirtiness(b)})
	}
	return list
}

// allocation answers for base:allocation.
func allocation(ctx context.Context, disk *block.Edge, off, n int64) (int64, uint64, error) {
	extent, err := disk.BlockStatus(ctx, off, n)
	return extent.Len, uint64(stateOf(extent.Status)), err
}

// stateOf is what base:allocation says of an extent.
func stateOf(status block.Status) uint32 {
	var state uint32
	if status&block.StatusData == 0 {
		state |= nbd.StateHole
	}
	if status&block.StatusZero != 0 {
		state |= nbd.StateZero
	}
	return state
}

// depth answers for qemu:allocation-depth.
func depth(ctx context.Context, disk *block.Edge, off, n int64) (int64, uint64, error) {
	length, depth, err := disk.Node().AllocationDepth(ctx, off, n)
	return length, uint64(depth), err
}

// dirtiness answers for a dirty bitmap.
func dirtiness(b *block.DirtyBitmap) func(context.Context, *block.Edge, int64, int64) (int64, uint64, error) {
	return func(_ context.Context, _ *block.Edge, off, n int64) (int64, uint64, error) {
		length, dirty := b.Extent(off, n)
		if dirty {
			return length, uint64(nbd.StateDirty), nil
		}
		return length, 0, nil
	}
}

// wanted says whether one of the queries is for a context. Only a list query may leave out the end of a name, after one of
// its colons, or everything.
func wanted(name string, queries []string, list bool) bool {
	if list && len(queries) == 0 {
		return true
	}
	return slices.ContainsFunc(queries, func(q string) bool {
		return q == name || list && strings.HasSuffix(q, ":") && strings.HasPrefix(name, q)
	})
}

// metaContext lists or selects metadata contexts of an export. A selection replaces the one before.
func (h *handshake) metaContext(head nbd.OptionHeader, data []byte) error {
	set := head.Option == nbd.OptSetMetaContext
	if set {
		h.metaExport, h.selected = nil, nil
	}
	if h.form == simple {
		return h.answer(head, nbd.RepErrInvalid, []byte("structured replies come first"))
	}
	q, err := nbd.ParseMetaQuery(data)
	if err != nil {
		return h.answer(head, nbd.RepErrInvalid, []byte(err.Error()))
	}
	e := h.server.find(q.Name)
	if e == nil {
		return h.unknown(head)
	}
	var found []metaContext
	for _, c := range e.contexts {
		if wanted(c.Name, q.Queries, !set) {
			found = append(found, c)
		}
	}
	if set {
		if len(found) > maxContexts {
			return h.answer(head, nbd.RepErrTooBig, []byte("too many metadata contexts"))
		}
		h.metaExport, h.selected = e, found
	}
	for _, c := range found {
		if !set {
			c.ID = 0
		}
		if err := h.answer(head, nbd.RepMetaContext, c.MetaContext.Append(nil)); err != nil {
			return err
		}
	}
	return h.answer(head, nbd.RepAck, nil)
}
