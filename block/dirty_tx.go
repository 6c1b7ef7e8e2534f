// SPDX-License-Identifier: Apache-2.0

package block

import (
	"slices"

	"github.com/blkmirror/blkmirror/block/bitmap"
)

// The changes of dirty bitmaps below are taken back if the change of the graph fails. For that to bring back the very bits,
// the node must be drained; without it, what is written meanwhile may be lost with the roll-back.

// BitmapConfig describes a new dirty bitmap.
type BitmapConfig struct {
	Name        string
	Granularity int64 // bytes, a power of two; 0 for the node's cluster size within 4 KiB and 64 KiB, or 64 KiB
	Persistent  bool  // store it in the image when that is closed
	Disabled    bool  // do not record
}

const (
	leastDefaultGranularity = 4 << 10
	mostDefaultGranularity  = 64 << 10
)

// AddBitmap makes a dirty bitmap with no bit set.
func (tx *Tx) AddBitmap(n *Node, c BitmapConfig) (*DirtyBitmap, error) {
	if c.Granularity == 0 {
		c.Granularity = mostDefaultGranularity
		if g := n.Limits().Granularity; g > 0 && g&(g-1) == 0 {
			c.Granularity = min(max(g, leastDefaultGranularity), mostDefaultGranularity)
		}
	}
	_, taken := n.FindBitmap(c.Name)
	switch {
	case c.Name == "":
		return nil, graphError(KindInvalid, "Bitmap name cannot be empty")
	case len(c.Name) > maxBitmapNameLen:
		return nil, graphError(KindInvalid, "Bitmap name too long: %s has %d bytes, %d is the most", c.Name,
			len(c.Name), maxBitmapNameLen)
	case c.Granularity < minBitmapGranularity || c.Granularity&(c.Granularity-1) != 0:
		return nil, graphError(KindInvalid, "Granularity must be power of 2 and at least %d", minBitmapGranularity)
	case taken == nil:
		return nil, graphError(KindExists, "Bitmap already exists: %s", c.Name)
	}
	if c.Persistent {
		if err := n.canKeep(BitmapInfo{Name: c.Name, Granularity: c.Granularity, Recording: !c.Disabled}); err != nil {
			return nil, graphError(KindOf(err), "Can't store persistent bitmaps to %s: %w", n.name, err)
		}
	}
	if err := bitmapFits(c.Name, n.Size(), c.Granularity); err != nil {
		return nil, err
	}
	bits, err := bitmap.New(n.Size(), c.Granularity)
	if err != nil {
		return nil, graphError(KindInvalid, "Bitmap '%s': %w", c.Name, err)
	}
	b := &DirtyBitmap{name: c.Name, granularity: c.Granularity}
	b.mu.bits, b.mu.recording = bits, !c.Disabled
	if c.Persistent {
		b.mu.keeper = n
		tx.using = append(tx.using, n)
	}
	tx.setBitmaps(n, append(n.Bitmaps(), b))
	return b, nil
}

// RemoveBitmap takes a dirty bitmap away from n.
func (tx *Tx) RemoveBitmap(n *Node, b *DirtyBitmap) error {
	if err := b.busy(); err != nil {
		return err
	}
	if err := tx.useBitmap(b); err != nil {
		return err
	}
	tx.setBitmaps(n, slices.DeleteFunc(n.Bitmaps(), func(other *DirtyBitmap) bool { return other == b }))
	return nil
}

// MoveBitmaps gives all dirty bitmaps of from to to, a node of the same size whose content is the same. Both are drained. Those
// that are persistent stay so if the image of to can keep them. What is inconsistent stays where it is.
func (tx *Tx) MoveBitmaps(from, to *Node) error {
	var moved, stay []*DirtyBitmap
	for _, b := range from.Bitmaps() {
		if b.Info().Inconsistent {
			stay = append(stay, b)
		} else {
			moved = append(moved, b)
		}
	}
	if len(moved) == 0 {
		return nil
	}
	if from.Size() != to.Size() {
		return graphError(KindInvalid, "Bitmaps of node '%s' with %d bytes cannot move to node '%s' with %d bytes",
			from.name, from.Size(), to.name, to.Size())
	}
	for _, b := range moved {
		if _, err := to.FindBitmap(b.name); err == nil {
			return graphError(KindExists, "Bitmap '%s' of node '%s' cannot move: node '%s' has one of that name",
				b.name, from.name, to.name)
		}
	}
	for _, b := range moved {
		if err := tx.rehome(b, to); err != nil {
			return err
		}
		tx.setBitmaps(to, append(to.Bitmaps(), b))
	}
	tx.setBitmaps(from, stay)
	return nil
}

// setBitmaps makes list, which nobody changes from then on, the bitmaps of n.
func (tx *Tx) setBitmaps(n *Node, list []*DirtyBitmap) {
	old := n.bitmaps.Load()
	if len(list) == 0 {
		n.bitmaps.Store(nil)
	} else {
		n.bitmaps.Store(&list)
	}
	tx.OnRollBack(func() { n.bitmaps.Store(old) })
}

// ClearBitmap is [DirtyBitmap.Clear] on the operator's behalf.
func (tx *Tx) ClearBitmap(b *DirtyBitmap) error {
	return tx.changeBitmap(b, func(bits *bitmap.Bitmap) { bits.Clear(bits.All()) })
}

// MergeBitmap sets the bits of b that are set in one of the others, copies of the bits of bitmaps of disks of the same size.
func (tx *Tx) MergeBitmap(b *DirtyBitmap, others ...*bitmap.Bitmap) error {
	size := b.size()
	for _, from := range others {
		if from.Size() != size {
			return graphError(KindInvalid, "Bitmaps are of different sizes (destination size is %d, source size is %d)",
				size, from.Size())
		}
	}
	return tx.changeBitmap(b, func(bits *bitmap.Bitmap) {
		for _, from := range others {
			bits.Merge(from)
		}
	})
}

func (tx *Tx) changeBitmap(b *DirtyBitmap, change func(bits *bitmap.Bitmap)) error {
	if err := b.Free(); err != nil {
		return err
	}
	if err := tx.useBitmap(b); err != nil {
		return err
	}
	b.mu.Lock()
	old := b.mu.bits.Clone()
	change(b.mu.bits)
	b.mu.Unlock()
	tx.OnRollBack(func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.mu.bits = old
	})
	return nil
}

// SetRecording enables or disables a bitmap.
func (tx *Tx) SetRecording(b *DirtyBitmap, on bool) error {
	if err := b.Free(); err != nil {
		return err
	}
	if err := tx.useBitmap(b); err != nil {
		return err
	}
	b.mu.Lock()
	old := b.mu.recording
	b.mu.recording = on
	b.mu.Unlock()
	tx.OnRollBack(func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.mu.recording = old
	})
	return nil
}
