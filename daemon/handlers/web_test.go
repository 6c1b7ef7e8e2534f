// SPDX-License-Identifier: Apache-2.0

package handlers

import (
	"context"
	"slices"
	"strings"
	"testing"

	"github.com/blkmirror/blkmirror/qmp"
	"github.com/blkmirror/blkmirror/qmp/api"
)

// TestPictures asks for what is drawn of a mirror.
func TestPictures(t *testing.T) {
	ctx := context.Background()
	h := New(Config{Emit: func(qmp.Event) {}})
	defer func() {
		if err := h.Close(ctx, 0); err != nil {
			t.Error(err)
		}
	}()
	do := func(command, arguments string) {
		t.Helper()
		value, err := qmp.NewReader(strings.NewReader(arguments + "\n")).Next()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := h.Dispatch(ctx, command, value.(*qmp.Object)); err != nil {
			t.Fatalf("%s: %v", command, err)
		}
	}
	do("blockdev-add", `{"driver": "null-co", "node-name": "a", "size": 1048576}`)
	do("blockdev-add", `{"driver": "null-co", "node-name": "b", "size": 1048576}`)
	do("blockdev-mirror", `{"job-id": "m", "device": "a", "target": "b", "sync": "none", "filter-node-name": "f"}`)

	edges, err := h.XQueryBlockGraph(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []api.BlockGraphEdge{
		{User: api.BlockGraphUserJob, Name: "m", Role: "root", NodeName: "f"},
		{User: api.BlockGraphUserNode, Name: "f", Role: "backing", NodeName: "a"},
		{User: api.BlockGraphUserNode, Name: "f", Role: "target", NodeName: "b"},
	} {
		if !slices.Contains(edges, want) {
			t.Errorf("%+v is not among %+v", want, edges)
		}
	}
	m, err := h.XQueryMirrorMap(ctx, &api.XQueryMirrorMapArguments{ID: "m", Offset: number(64 << 10), Length: number(256 << 10), Cells: number(3)})
	if err != nil {
		t.Fatal(err)
	}
	var chunks int64
	for _, list := range [][]int64{m.Unscanned, m.Dirty, m.DirtyZero, m.InFlight, m.Copied, m.Zero} {
		if len(list) != 2 {
			t.Errorf("%d cells", len(list))
		}
		for _, n := range list {
			chunks += n
		}
	}
	if m.Size != 1<<20 || m.Granularity != 64<<10 || m.Offset != 64<<10 || m.CellSize != 128<<10 || chunks != 4 {
		t.Errorf("%+v", m)
	}
	for _, wrong := range []api.XQueryMirrorMapArguments{
		{ID: "x"}, {ID: "m", Cells: number(0)}, {ID: "m", Cells: number(4097)}, {ID: "m", Cells: number(1 << 40)}, {ID: "m", Offset: number(-1)},
		{ID: "m", Offset: number(1<<20 + 1)}, {ID: "m", Length: number(-1)},
	} {
		if _, err := h.XQueryMirrorMap(ctx, &wrong); err == nil {
			t.Errorf("%+v was answered", wrong)
		}
	}
}

func number(n int64) *int64 { return &n }
