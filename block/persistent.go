// SPDX-License-Identifier: Apache-2.0

package block

import (
	"context"
	"slices"

	"github.com/blkmirror/blkmirror/block/bitmap"
)

// Persistent bitmaps live in memory while their node is open, like all others. The image that keeps them says that they are in
// use from the first writer or the first change on, until they are stored when the node is closed: an image on which nobody
// worked keeps its bitmaps through the death of the process, and one on which somebody did has none that lack a write.

// maxLoadedBitmaps is how many bytes the bits of all bitmaps of one image may take.
const maxLoadedBitmaps = 1 << 30

// LoadBitmaps gives n the dirty bitmaps that its image keeps.
func (tx *Tx) LoadBitmaps(ctx context.Context, n *Node) error {
	return tx.loadBitmaps(ctx, n, n.Driver())
}

func (tx *Tx) loadBitmaps(ctx context.Context, n *Node, d Driver) error {
	keeper, ok := d.(BitmapKeeper)
	if !ok {
		return nil
	}
	list := n.Bitmaps()
	var memory int64
	for _, stored := range keeper.StoredBitmaps() {
		if slices.ContainsFunc(list, func(b *DirtyBitmap) bool { return b.name == stored.Name }) {
			return graphError(KindExists, "Node '%s' has two bitmaps called '%s'", n.name, stored.Name)
		}
		b, err := loadBitmap(ctx, n, keeper, stored, &memory)
		if err != nil {
			return graphError(KindOf(err), "Node '%s': cannot load the bitmap '%s' of its image: %w", n.name, stored.Name, err)
		}
		list = append(list, b)
	}
	tx.setBitmaps(n, list)
	return nil
}

func loadBitmap(ctx context.Context, n *Node, k BitmapKeeper, stored StoredBitmap, memory *int64) (*DirtyBitmap, error) {
	if g := stored.Granularity; g < minBitmapGranularity || g&(g-1) != 0 {
		return nil, graphError(KindInvalid, "its granularity of %d is no power of two from %d on", g, minBitmapGranularity)
	}
	size := n.Size()
	b := &DirtyBitmap{name: stored.Name, granularity: stored.Granularity}
	b.mu.keeper = n
	b.mu.inconsistent = stored.Inconsistent
	b.mu.recording = stored.Recording && !stored.Inconsistent
	if stored.Inconsistent {
		size = min(size, stored.Granularity) // it has no bits to speak of
	} else if err := bitmapFits(stored.Name, size, stored.Granularity); err != nil {
		return nil, err
	}
	bits, err := bitmap.New(size, stored.Granularity)
	if err != nil {
		return nil, err
	}
	if *memory += bits.All().Len() / 8; *memory > maxLoadedBitmaps {
		return nil, graphError(KindNoMemory, "all bitmaps of the image take more than %d MiB", maxLoadedBitmaps>>20)
	}
	if !stored.Inconsistent {
		if err := k.ReadBitmap(ctx, stored.Name, bits); err != nil {
			return nil, err
		}
	}
	b.mu.bits = bits
	return b, nil
}

// reloadBitmaps loads the bitmaps of an image anew, with the driver that the node is about to get.
func (tx *Tx) reloadBitmaps(ctx context.Context, n *Node, d Driver) error {
	if _, ok := d.(BitmapKeeper); !ok {
		return nil
	}
	var others []*DirtyBitmap
	for _, b := range n.Bitmaps() {
		if b.keptBy() != n {
			others = append(others, b)
		} else if err := b.busy(); err != nil {
			return err
		}
	}
	tx.setBitmaps(n, others)
	return tx.loadBitmaps(ctx, n, d)
}

// keptBitmaps are the bitmaps that the image of n is to keep.
func (n *Node) keptBitmaps() []StoredBitmap {
	var list []StoredBitmap
	for _, b := range n.Bitmaps() {
		if stored, ok := b.storedFor(n); ok {
			list = append(list, stored)
		}
	}
	return list
}

func (b *DirtyBitmap) storedFor(n *Node) (StoredBitmap, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	stored := StoredBitmap{Name: b.name, Granularity: b.granularity, Recording: b.mu.recording, Inconsistent: b.mu.inconsistent}
	if !b.mu.inconsistent {
		stored.Bits = b.mu.bits
	}
	return stored, b.mu.keeper == n
}

func (b *DirtyBitmap) keptBy() *Node {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.mu.keeper
}

// canKeep says why the image of n cannot keep a bitmap besides those that it has; nil if it can.
func (n *Node) canKeep(b BitmapInfo) error {
	o := n.now()
	switch {
	case o.keeper == nil:
		return NotSupported
	case o.options.ReadOnly:
		return &Error{Kind: KindReadOnly, Op: OpGraph, Err: errReadOnly}
	}
	return o.keeper.CanKeepBitmap(b, len(n.keptBitmaps()))
}

// rehome makes the image of another node keep a bitmap, if it can.
func (tx *Tx) rehome(b *DirtyBitmap, to *Node) error {
	from := b.keptBy()
	if from == nil {
		return nil
	}
	if err := tx.useBitmap(b); err != nil {
		return err
	}
	keeper := to
	if to.canKeep(b.Info()) != nil {
		keeper = nil
	} else {
		tx.using = append(tx.using, to)
	}
	b.setKeeper(keeper)
	tx.OnRollBack(func() { b.setKeeper(from) })
	return nil
}

func (b *DirtyBitmap) setKeeper(n *Node) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.mu.keeper = n
}

// useBitmap takes note that a bitmap is about to change, in memory and so also in the image that keeps it.
func (tx *Tx) useBitmap(b *DirtyBitmap) error {
	n := b.keptBy()
	if n == nil {
		return nil
	}
	if n.now().options.ReadOnly {
		return graphError(KindReadOnly, "Bitmap '%s' is readonly and cannot be modified: node '%s' is", b.name, n.name)
	}
	tx.using = append(tx.using, n)
	return nil
}

// useBitmaps marks the stored bitmaps of nodes as in use whose bitmaps change, or that got a writer. The permission to write to
// their images is there by now.
func (tx *Tx) useBitmaps(ctx context.Context, order []*Node) error {
	using := tx.using
	tx.using = nil
	for _, n := range order {
		if need, _ := cumulative(n); need&(PermWrite|PermWriteUnchanged|PermResize) != 0 {
			using = append(using, n)
		}
	}
	for _, n := range using {
		o := n.now()
		if o.keeper == nil || o.options.ReadOnly || n.inUse || !tx.listed(n) {
			continue
		}
		if err := o.keeper.UseBitmaps(ctx); err != nil {
			return graphError(KindOf(err), "Node '%s': cannot mark its persistent bitmaps as in use: %w", n.name, err)
		}
		n.inUse = true // whatever becomes of the change
	}
	return nil
}

// useAgain marks the bitmaps of a node as in use whose change was taken back after they were stored. If that fails, they may lack
// writes after a crash, so they are of no use from then on.
func (n *Node) useAgain(ctx context.Context) {
	if n.now().keeper.UseBitmaps(context.WithoutCancel(ctx)) == nil {
		n.inUse = true
		return
	}
	for _, b := range slices.DeleteFunc(n.Bitmaps(), func(b *DirtyBitmap) bool { return b.keptBy() != n }) {
		b.mu.Lock()
		b.mu.inconsistent, b.mu.recording = true, false
		b.mu.Unlock()
	}
}
