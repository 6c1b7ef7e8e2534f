// SPDX-License-Identifier: Apache-2.0

package qcow2

import (
	"context"
	"testing"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/blocktest"
)

// asked is a disk with data at its beginning; it counts the questions that reach it.
type asked struct {
	*blocktest.Mem
	n int
}

func (a *asked) BlockStatus(_ context.Context, off, n int64) (block.Extent, error) {
	a.n++
	if off < 64*kib {
		return block.Extent{Len: min(n, 64*kib-off), Status: block.StatusData | block.StatusAllocated}, nil
	}
	return block.Extent{Len: n, Status: block.StatusZero}, nil
}

// TestStatusOfLongChain: a question about a chain costs each layer about one question to the next, whatever the lowest one holds.
func TestStatusOfLongChain(t *testing.T) {
	bottom := &asked{Mem: blocktest.NewMemOf(make([]byte, mib), blocktest.MemOptions{})}
	top := blocktest.NewNode(t, block.NewGraph(), "bottom", bottom, block.Options{})
	for range 15 {
		top = newImage(t, CreateOptions{Size: mib, BackingFile: "below"}, Options{}, top).node
	}
	bottom.n = 0
	e, err := top.BlockStatus(bg, 0, mib)
	must(t, err)
	if e.Len != 64*kib || e.Status&block.StatusData == 0 {
		t.Errorf("extent %+v", e)
	}
	if bottom.n > 2 {
		t.Errorf("%d questions", bottom.n)
	}
}
