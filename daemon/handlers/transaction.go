// SPDX-License-Identifier: Apache-2.0

package handlers

import (
	"context"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/qmp"
	"github.com/blkmirror/blkmirror/qmp/api"
)

// Transaction carries out actions in their order, with nothing being written to their nodes meanwhile. If one fails, those
// before it are taken back.
func (h *Handlers) Transaction(ctx context.Context, a *api.TransactionArguments) error {
	if a.Properties != nil && a.Properties.CompletionMode == api.ActionCompletionModeGrouped {
		for _, action := range a.Actions {
			return qmp.Errorf("Action '%s' does not support transaction property completion-mode = grouped", action.Type)
		}
	}
	return h.connecting(ctx, func() error {
		return h.change(ctx, func(tx *block.Tx) error { return h.actAll(ctx, tx, a.Actions) })
	})
}

func (h *Handlers) actAll(ctx context.Context, tx *block.Tx, actions []api.TransactionAction) error {
	var nodes []*block.Node
	for _, action := range actions {
		for _, name := range nodesOf(&action) {
			if n, err := h.graph.Node(name); err == nil {
				nodes = append(nodes, n)
			}
		}
	}
	if err := tx.Drain(ctx, nil, nodes...); err != nil {
		return err
	}
	for _, action := range actions {
		if err := h.act(ctx, tx, &action); err != nil {
			return err
		}
	}
	return nil
}

func (h *Handlers) act(ctx context.Context, tx *block.Tx, a *api.TransactionAction) error {
	switch {
	case a.Abort != nil:
		return qmp.Errorf("Transaction aborted using Abort action")
	case a.BlockDirtyBitmapAdd != nil:
		return h.addBitmap(tx, &a.BlockDirtyBitmapAdd.Data)
	case a.BlockDirtyBitmapRemove != nil:
		return h.removeBitmap(tx, &a.BlockDirtyBitmapRemove.Data)
	case a.BlockDirtyBitmapClear != nil:
		return h.clearBitmap(tx, &a.BlockDirtyBitmapClear.Data)
	case a.BlockDirtyBitmapEnable != nil:
		return h.recordBitmap(tx, &a.BlockDirtyBitmapEnable.Data, true)
	case a.BlockDirtyBitmapDisable != nil:
		return h.recordBitmap(tx, &a.BlockDirtyBitmapDisable.Data, false)
	case a.BlockDirtyBitmapMerge != nil:
		return h.mergeBitmap(tx, &a.BlockDirtyBitmapMerge.Data)
	case a.BlockdevSnapshot != nil:
		return h.snapshot(ctx, tx, &a.BlockdevSnapshot.Data)
	case a.BlockdevSnapshotSync != nil:
		return h.snapshotSync(ctx, tx, &a.BlockdevSnapshotSync.Data)
	}
	return qmp.Errorf("Action '%s' is not available", a.Type)
}

// nodesOf are the names of the nodes that an action is about.
func nodesOf(a *api.TransactionAction) []string {
	for _, w := range []*api.BlockDirtyBitmapWrapper{a.BlockDirtyBitmapRemove, a.BlockDirtyBitmapClear,
		a.BlockDirtyBitmapEnable, a.BlockDirtyBitmapDisable} {
		if w != nil {
			return []string{w.Data.Node}
		}
	}
	switch {
	case a.BlockDirtyBitmapAdd != nil:
		return []string{a.BlockDirtyBitmapAdd.Data.Node}
	case a.BlockDirtyBitmapMerge != nil:
		names := []string{a.BlockDirtyBitmapMerge.Data.Node}
		for _, source := range a.BlockDirtyBitmapMerge.Data.Bitmaps {
			if source.External != nil {
				names = append(names, source.External.Node)
			}
		}
		return names
	case a.BlockdevSnapshot != nil:
		return []string{a.BlockdevSnapshot.Data.Node}
	case a.BlockdevSnapshotSync != nil:
		return []string{qmp.Or(a.BlockdevSnapshotSync.Data.NodeName, "")}
	}
	return nil
}
