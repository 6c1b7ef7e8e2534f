// SPDX-License-Identifier: Apache-2.0

package handlers

import (
	"context"
	"crypto/sha256"
	"encoding/hex"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/bitmap"
	"github.com/blkmirror/blkmirror/qmp"
	"github.com/blkmirror/blkmirror/qmp/api"
)

// bitmap finds a dirty bitmap.
func (h *Handlers) bitmap(node, name string) (*block.Node, *block.DirtyBitmap, error) {
	n, err := h.graph.Node(node)
	if err != nil {
		return nil, nil, err
	}
	b, err := n.FindBitmap(name)
	return n, b, err
}

func (h *Handlers) addBitmap(tx *block.Tx, a *api.BlockDirtyBitmapAdd) error {
	n, err := h.graph.Node(a.Node)
	if err != nil {
		return err
	}
	c := block.BitmapConfig{Name: a.Name, Persistent: qmp.Or(a.Persistent, false), Disabled: qmp.Or(a.Disabled, false)}
	if a.Granularity != nil {
		if c.Granularity = int64(*a.Granularity); c.Granularity == 0 {
			c.Granularity = 1 // 0 means the default to block, and is as wrong as 1
		}
	}
	_, err = tx.AddBitmap(n, c)
	return err
}

func (h *Handlers) removeBitmap(tx *block.Tx, a *api.BlockDirtyBitmap) error {
	n, b, err := h.bitmap(a.Node, a.Name)
	if err != nil {
		return err
	}
	return tx.RemoveBitmap(n, b)
}

func (h *Handlers) clearBitmap(tx *block.Tx, a *api.BlockDirtyBitmap) error {
	_, b, err := h.bitmap(a.Node, a.Name)
	if err != nil {
		return err
	}
	return tx.ClearBitmap(b)
}

// recordBitmap enables or disables a bitmap.
func (h *Handlers) recordBitmap(tx *block.Tx, a *api.BlockDirtyBitmap, on bool) error {
	_, b, err := h.bitmap(a.Node, a.Name)
	if err != nil {
		return err
	}
	return tx.SetRecording(b, on)
}

// mergeBitmap looks at all sources before it changes the target.
func (h *Handlers) mergeBitmap(tx *block.Tx, a *api.BlockDirtyBitmapMerge) error {
	_, target, err := h.bitmap(a.Node, a.Target)
	if err != nil {
		return err
	}
	var bits []*bitmap.Bitmap
	for _, source := range a.Bitmaps {
		from := api.BlockDirtyBitmap{Node: a.Node}
		if source.External != nil {
			from = *source.External
		} else {
			from.Name = *source.Local
		}
		_, b, err := h.bitmap(from.Node, from.Name)
		if err != nil {
			return err
		}
		if err := b.Free(); err != nil {
			return err
		}
		bits = append(bits, b.Snapshot())
	}
	return tx.MergeBitmap(target, bits...)
}

// BlockDirtyBitmapAdd makes a bitmap.
func (h *Handlers) BlockDirtyBitmapAdd(ctx context.Context, a *api.BlockDirtyBitmapAdd) error {
	return h.change(ctx, func(tx *block.Tx) error { return h.addBitmap(tx, a) })
}

// BlockDirtyBitmapRemove removes a bitmap.
func (h *Handlers) BlockDirtyBitmapRemove(ctx context.Context, a *api.BlockDirtyBitmap) error {
	return h.change(ctx, func(tx *block.Tx) error { return h.removeBitmap(tx, a) })
}

// BlockDirtyBitmapClear makes a bitmap forget what was written.
func (h *Handlers) BlockDirtyBitmapClear(ctx context.Context, a *api.BlockDirtyBitmap) error {
	return h.change(ctx, func(tx *block.Tx) error { return h.clearBitmap(tx, a) })
}

// BlockDirtyBitmapEnable lets a bitmap record.
func (h *Handlers) BlockDirtyBitmapEnable(ctx context.Context, a *api.BlockDirtyBitmap) error {
	return h.change(ctx, func(tx *block.Tx) error { return h.recordBitmap(tx, a, true) })
}

// BlockDirtyBitmapDisable stops a bitmap from recording.
func (h *Handlers) BlockDirtyBitmapDisable(ctx context.Context, a *api.BlockDirtyBitmap) error {
	return h.change(ctx, func(tx *block.Tx) error { return h.recordBitmap(tx, a, false) })
}

// BlockDirtyBitmapMerge adds bitmaps to another.
func (h *Handlers) BlockDirtyBitmapMerge(ctx context.Context, a *api.BlockDirtyBitmapMerge) error {
	return h.change(ctx, func(tx *block.Tx) error { return h.mergeBitmap(tx, a) })
}

// XDebugBlockDirtyBitmapSha256 returns the digest of a bitmap.
func (h *Handlers) XDebugBlockDirtyBitmapSha256(_ context.Context, a *api.BlockDirtyBitmap) (api.BlockDirtyBitmapSha256, error) {
	_, b, err := h.bitmap(a.Node, a.Name)
	if err != nil {
		return api.BlockDirtyBitmapSha256{}, err
	}
	digest := sha256.New()
	if _, err := b.Snapshot().WriteTo(digest); err != nil {
		return api.BlockDirtyBitmapSha256{}, err
	}
	return api.BlockDirtyBitmapSha256{Sha256: hex.EncodeToString(digest.Sum(nil))}, nil
}
