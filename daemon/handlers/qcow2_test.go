// SPDX-License-Identifier: Apache-2.0

package handlers

import (
	"context"
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/qmp"
	"github.com/blkmirror/blkmirror/qmp/api"
)

// guest attaches a user that writes to a node.
func guest(t *testing.T, h *Handlers, node string) *block.Backend {
	t.Helper()
	var b *block.Backend
	err := h.graph.Change(context.Background(), func(tx *block.Tx) error {
		n, err := h.graph.Node(node)
		if err == nil {
			b, err = tx.Attach(n, "guest", block.PermConsistentRead|block.PermWrite, block.PermAll)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func detach(t *testing.T, h *Handlers, b *block.Backend) {
	t.Helper()
	if err := h.graph.Change(context.Background(), func(tx *block.Tx) error { tx.Detach(b); return nil }); err != nil {
		t.Fatal(err)
	}
}

// marked says whether an image is marked as dirty.
func marked(t *testing.T, path string) bool {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return binary.BigEndian.Uint64(b[72:])&1 != 0
}

// An orderly stop leaves images at rest, whatever they put off.
func TestCloseBringsImagesToRest(t *testing.T) {
	path := filepath.Join(t.TempDir(), "image")
	writeImage(t, path, "", "")
	h := New(Config{Emit: func(qmp.Event) {}})
	o := &api.BlockdevOptions{}
	if err := o.UnmarshalJSON([]byte(`{"driver": "qcow2", "node-name": "s", "lazy-refcounts": true,
		"file": {"driver": "file", "filename": ` + quote(t, path) + `}}`)); err != nil {
		t.Fatal(err)
	}
	if err := h.BlockdevAdd(context.Background(), o); err != nil {
		t.Fatal(err)
	}
	b := guest(t, h, "s")
	if marked(t, path) {
		t.Error("marked before anything was written")
	}
	if err := b.WriteAt(context.Background(), make([]byte, 4096), 0, block.FUA); err != nil {
		t.Fatal(err)
	}
	if !marked(t, path) {
		t.Error("not marked although refcounts are put off")
	}
	detach(t, h, b)
	if err := h.Close(context.Background(), 0); err != nil {
		t.Fatal(err)
	}
	if marked(t, path) {
		t.Error("still marked after an orderly stop")
	}
}

// What is wrong with an image is told once, with its node.
func TestCorruptionIsTold(t *testing.T) {
	path := filepath.Join(t.TempDir(), "image")
	writeImage(t, path, "", "")
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(binary.BigEndian.AppendUint64(nil, 1<<63|(65536+512)), 3*65536); err != nil { // the L1 table
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	var told []*api.BlockImageCorruptedEvent
	h := New(Config{Emit: func(e qmp.Event) {
		if c, ok := e.(*api.BlockImageCorruptedEvent); ok {
			told = append(told, c)
		}
	}})
	o := &api.BlockdevOptions{}
	if err := o.UnmarshalJSON([]byte(`{"driver": "qcow2", "node-name": "s", "file": {"driver": "file", "filename": ` + quote(t, path) + `}}`)); err != nil {
		t.Fatal(err)
	}
	if err := h.BlockdevAdd(context.Background(), o); err != nil {
		t.Fatal(err)
	}
	b := guest(t, h, "s")
	for range 2 {
		if err := b.WriteAt(context.Background(), make([]byte, 512), 0, 0); err == nil {
			t.Error("wrote to a corrupt image")
		}
	}
	detach(t, h, b)
	if err := h.Close(context.Background(), 0); err != nil {
		t.Error(err)
	}
	if len(told) != 1 || told[0].NodeName == nil || *told[0].NodeName != "s" || !told[0].Fatal || told[0].Offset == nil {
		t.Errorf("told %+v", told)
	}
}

// An image that cannot be brought to rest at the end keeps no other from it.
func TestCloseGoesOn(t *testing.T) {
	dir := t.TempDir()
	h, do := run(t)
	for _, name := range []string{"a", "b"} {
		path := filepath.Join(dir, name)
		writeImage(t, path, "", "")
		if err := do("blockdev-add", `{"driver": "qcow2", "node-name": "`+name+`", "lazy-refcounts": true,
			"file": {"driver": "blkdebug", "node-name": "d`+name+`", "image": {"driver": "file", "filename": `+quote(t, path)+`}}}`); err != nil {
			t.Fatal(err)
		}
		b := guest(t, h, name)
		if err := b.WriteAt(context.Background(), make([]byte, 512), 0, block.FUA); err != nil {
			t.Fatal(err)
		}
		detach(t, h, b)
	}
	if err := do("blockdev-reopen", `{"options": [{"driver": "blkdebug", "node-name": "db",
		"image": {"driver": "file", "filename": `+quote(t, filepath.Join(dir, "b"))+`},
		"inject-error": [{"event": "none", "iotype": "flush"}]}]}`); err != nil {
		t.Fatal(err)
	}
	if err := h.closeNodes(context.Background()); err == nil {
		t.Error("a failing flush went unnoticed")
	}
	if marked(t, filepath.Join(dir, "a")) {
		t.Error("the image that works was not brought to rest")
	}
	if err := do("blockdev-reopen", `{"options": [{"driver": "blkdebug", "node-name": "db",
		"image": {"driver": "file", "filename": `+quote(t, filepath.Join(dir, "b"))+`}}]}`); err != nil {
		t.Fatal(err)
	}
}
