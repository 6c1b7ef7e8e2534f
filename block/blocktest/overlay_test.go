// SPDX-License-Identifier: Apache-2.0

package blocktest_test

import (
	"testing"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/blocktest"
)

func TestOverlay(t *testing.T) {
	blocktest.TestDriver(t, blocktest.Suite{Open: func(t *testing.T, size int64) block.Driver {
		g := block.NewGraph()
		base := blocktest.NewNode(t, g, "base", blocktest.NewMem(blocktest.MemOptions{Size: size / 1024 * 512}), block.Options{})
		b := blocktest.Attach(t, g, base, "overlay", block.PermConsistentRead, block.PermAll)
		return blocktest.NewOverlay(&b.Edge, blocktest.OverlayOptions{Size: size, Cluster: 4096})
	}})
}
