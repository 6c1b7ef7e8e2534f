// SPDX-License-Identifier: Apache-2.0

package qcow2_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/bitmap"
	"github.com/blkmirror/blkmirror/block/blocktest"
	"github.com/blkmirror/blkmirror/block/driver/file"
	"github.com/blkmirror/blkmirror/block/driver/qcow2"
)

// qemuImg runs qemu-img, which is there on hosts that have QEMU's tools.
func qemuImg(t *testing.T, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath("qemu-img"); err != nil {
		t.Skip("qemu-img is not installed: nothing to make and check images with")
	}
	out, err := exec.Command("qemu-img", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("qemu-img %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// imageNode opens an image, with its bitmaps, in a graph of its own.
func imageNode(t *testing.T, path string, readOnly bool) (*block.Graph, *block.Node) {
	t.Helper()
	g := block.NewGraph()
	var n *block.Node
	err := g.Change(context.Background(), func(tx *block.Tx) error {
		f, err := tx.AddNode(block.NodeConfig{DriverName: "file", Options: block.Options{ReadOnly: readOnly, Discard: true},
			Open: func([]*block.Edge) (block.Driver, error) {
				return file.Open(file.Options{Filename: path, ReadOnly: readOnly})
			}})
		if err != nil {
			return err
		}
		n, err = tx.AddNode(block.NodeConfig{Name: "n", DriverName: "qcow2", Monitor: true, Options: block.Options{ReadOnly: readOnly, Discard: true},
			Children: []block.Child{{Name: "file", Node: f}},
			Open: func(e []*block.Edge) (block.Driver, error) {
				return qcow2.Open(context.Background(), qcow2.Options{ReadOnly: readOnly}, qcow2.Children{File: e[0]})
			}})
		if err != nil {
			return err
		}
		return tx.LoadBitmaps(context.Background(), n)
	})
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return g, n
}

func closeImage(t *testing.T, g *block.Graph, n *block.Node) {
	t.Helper()
	blocktest.Change(t, g, func(tx *block.Tx) error { return tx.RemoveNode(n) })
}

func persistent(t *testing.T, g *block.Graph, n *block.Node, name string, granularity int64) *block.DirtyBitmap {
	t.Helper()
	var b *block.DirtyBitmap
	blocktest.Change(t, g, func(tx *block.Tx) (err error) {
		b, err = tx.AddBitmap(n, block.BitmapConfig{Name: name, Granularity: granularity, Persistent: true})
		return err
	})
	return b
}

func stored(t *testing.T, n *block.Node, name string) *bitmap.Bitmap {
	t.Helper()
	b, err := n.FindBitmap(name)
	if err != nil {
		t.Fatal(err)
	}
	return b.Snapshot()
}

func equal(a, b *bitmap.Bitmap) bool {
	both := a.Clone()
	both.Union(b)
	return a.Len() == b.Len() && both.Len() == a.Len()
}

// Bitmaps that were recorded here are found again, by us and by QEMU, whatever the clusters and refcounts of the image.
func TestBitmapsComeBack(t *testing.T) {
	for _, options := range []string{"cluster_size=512", "cluster_size=4k,refcount_bits=1", "cluster_size=64k", "cluster_size=2M,refcount_bits=64",
		"lazy_refcounts=on", "extended_l2=on"} {
		t.Run(options, func(t *testing.T) {
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			r := rand.New(rand.NewPCG(seed, 0))
			path := filepath.Join(t.TempDir(), "image")
			const size = 48<<20 + 1536
			qemuImg(t, "create", "-q", "-f", "qcow2", "-o", options, path, fmt.Sprint(size))
			g, n := imageNode(t, path, false)
			names := []string{"fine", "coarse", "full", "empty"}
			persistent(t, g, n, "fine", 512)
			persistent(t, g, n, "coarse", 64<<10)
			persistent(t, g, n, "full", 512)
			b := blocktest.Attach(t, g, n, "guest", block.PermConsistentRead|block.PermWrite, block.PermAll)
			var want map[string]*bitmap.Bitmap
			for round := range 3 {
				for range 40 {
					off, length := r.Int64N(size), 1+r.Int64N(8<<10)
					length = min(length, n.Size()-off)
					p := make([]byte, length)
					for i := range p {
						p[i] = byte(r.Uint32())
					}
					if err := b.WriteAt(context.Background(), p, off, 0); err != nil {
						t.Fatal(err)
					}
				}
				if round == 0 {
					persistent(t, g, n, "empty", 4<<10)
					if full, err := n.FindBitmap("full"); err == nil {
						all, _ := bitmap.New(n.Size(), 512)
						all.Set(all.All())
						blocktest.Change(t, g, func(tx *block.Tx) error { return tx.MergeBitmap(full, all) })
					}
				}
				want = map[string]*bitmap.Bitmap{}
				for _, name := range names {
					want[name] = stored(t, n, name)
				}
				blocktest.Detach(t, g, b)
				closeImage(t, g, n)
				qemuImg(t, "check", "-q", path)
				for _, name := range names { // QEMU reads them and writes what it read
					qemuImg(t, "bitmap", "--add", "-g", fmt.Sprint(want[name].Granularity()), path, "copy-"+name)
					qemuImg(t, "bitmap", "--merge", name, path, "copy-"+name)
				}
				g, n = imageNode(t, path, false)
				for _, name := range names {
					for _, of := range []string{name, "copy-" + name} {
						if got := stored(t, n, of); !equal(got, want[name]) {
							t.Fatalf("round %d: bitmap '%s' has %d bits, not the %d that it had", round, of, got.Len(), want[name].Len())
						}
					}
					copied, err := n.FindBitmap("copy-" + name)
					if err != nil {
						t.Fatal(err)
					}
					blocktest.Change(t, g, func(tx *block.Tx) error { return tx.RemoveBitmap(n, copied) })
				}
				b = blocktest.Attach(t, g, n, "guest", block.PermConsistentRead|block.PermWrite, block.PermAll)
			}
			blocktest.Detach(t, g, b)
			blocktest.Change(t, g, func(tx *block.Tx) error {
				for _, b := range n.Bitmaps() {
					if err := tx.RemoveBitmap(n, b); err != nil {
						return err
					}
				}
				return nil
			})
			closeImage(t, g, n)
			qemuImg(t, "check", "-q", path)
			if info := qemuImg(t, "info", path); strings.Contains(info, "bitmaps:") {
				t.Errorf("bitmaps that were removed are still there:\n%s", info)
			}
		})
	}
}

// What was not closed has bitmaps that are in use, for us and for QEMU; they can only be removed.
func TestBitmapsInUse(t *testing.T) {
	dir := t.TempDir()
	path, crashed := filepath.Join(dir, "image"), filepath.Join(dir, "crashed")
	qemuImg(t, "create", "-q", "-f", "qcow2", path, "16M")
	g, n := imageNode(t, path, false)
	persistent(t, g, n, "b", 64<<10)
	closeImage(t, g, n)

	copyNow := func() {
		t.Helper()
		b, err := os.ReadFile(path)
		if err == nil {
			err = os.WriteFile(crashed, b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	inUse := func() bool { return strings.Contains(qemuImg(t, "info", crashed), "in-use") }
	g, n = imageNode(t, path, false)
	if copyNow(); inUse() {
		t.Error("in use without a writer")
	}
	b := blocktest.Attach(t, g, n, "guest", block.PermWrite, block.PermAll)
	if copyNow(); !inUse() {
		t.Error("not in use with a writer")
	}
	if err := b.WriteAt(context.Background(), make([]byte, 512), 0, block.FUA); err != nil {
		t.Fatal(err)
	}
	if copyNow(); !inUse() {
		t.Error("not in use after a write")
	}
	blocktest.Detach(t, g, b)
	closeImage(t, g, n)

	g, n = imageNode(t, crashed, false)
	lost, err := n.FindBitmap("b")
	if err != nil || !lost.Info().Inconsistent {
		t.Fatalf("after a crash: %v", err)
	}
	persistent(t, g, n, "c", 64<<10)
	closeImage(t, g, n)
	qemuImg(t, "check", "-q", crashed)
	g, n = imageNode(t, crashed, false)
	if lost, err = n.FindBitmap("b"); err != nil || !lost.Info().Inconsistent {
		t.Fatalf("stored again as consistent, or gone: %v", err)
	}
	blocktest.Change(t, g, func(tx *block.Tx) error { return tx.RemoveBitmap(n, lost) })
	closeImage(t, g, n)
	qemuImg(t, "check", "-q", crashed)
	if info := qemuImg(t, "info", crashed); strings.Contains(info, "in-use") || !strings.Contains(info, "name: c") {
		t.Errorf("after its removal:\n%s", info)
	}
}

func TestBitmapsThatCannotBeKept(t *testing.T) {
	path := filepath.Join(t.TempDir(), "image")
	qemuImg(t, "create", "-q", "-f", "qcow2", "-o", "compat=0.10", path, "16M")
	g, n := imageNode(t, path, false)
	err := g.Change(context.Background(), func(tx *block.Tx) error {
		_, err := tx.AddBitmap(n, block.BitmapConfig{Name: "b", Persistent: true})
		return err
	})
	if err == nil || !strings.Contains(err.Error(), "v2") {
		t.Errorf("in version 2: %v", err)
	}
	closeImage(t, g, n)
}
