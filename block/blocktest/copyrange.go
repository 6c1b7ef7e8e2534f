// SPDX-License-Identifier: Apache-2.0

package blocktest

import (
	"context"

	"github.com/blkmirror/blkmirror/block"
)

// copyStep is the most that one call copies.
const copyStep = 128 << 10

// CopyRange copies from another disk in memory, with the hooks of a read there and of a write here.
func (m *Mem) CopyRange(ctx context.Context, from block.Driver, fromOff, off, n int64, _ bool) (int64, block.Offload, error) {
	source, ok := from.(*Mem)
	if !ok || !m.options.CopyRange {
		return 0, 0, block.NotSupported
	}
	p := make([]byte, min(n, copyStep))
	if err := source.ReadAt(ctx, p, fromOff); err != nil {
		return 0, 0, err
	}
	if err := m.WriteAt(ctx, p, off, 0); err != nil {
		return 0, 0, err
	}
	return int64(len(p)), block.OffloadCloned, nil
}

var _ block.RangeCopier = (*Mem)(nil)
