// SPDX-License-Identifier: Apache-2.0

package block_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/bitmap"
	"github.com/blkmirror/blkmirror/block/blocktest"
)

// album is what an image keeps: it outlives the driver.
type album struct {
	stored []block.StoredBitmap
	inUse  bool
	log    []string
	fail   string // the call that fails
}

func (a *album) note(what string) error {
	a.log = append(a.log, what)
	if what == a.fail {
		return errors.New("album is full")
	}
	return nil
}

// keeper is a disk whose image keeps bitmaps.
type keeper struct {
	*blocktest.Mem
	album *album
}

func (k keeper) StoredBitmaps() []block.StoredBitmap {
	list := slices.Clone(k.album.stored)
	for i := range list {
		list[i].Inconsistent = list[i].Inconsistent || k.album.inUse
		list[i].Bits = nil
	}
	return list
}

func (k keeper) ReadBitmap(_ context.Context, name string, bits *bitmap.Bitmap) error {
	for _, b := range k.album.stored {
		if b.Name == name {
			bits.Union(b.Bits)
		}
	}
	return k.album.note("read " + name)
}

func (k keeper) CanKeepBitmap(b block.BitmapInfo, n int) error {
	if n >= 2 {
		return fmt.Errorf("2 bitmaps are the most")
	}
	return nil
}

func (k keeper) UseBitmaps(context.Context) error {
	if err := k.album.note("use"); err != nil {
		return err
	}
	k.album.inUse = true
	return nil
}

func (k keeper) StoreBitmaps(_ context.Context, list []block.StoredBitmap) error {
	if err := k.album.note("store"); err != nil {
		return err
	}
	k.album.stored, k.album.inUse = nil, false
	for _, b := range list {
		if b.Bits != nil {
			b.Bits = b.Bits.Clone()
		}
		k.album.stored = append(k.album.stored, b)
	}
	return nil
}

func (k keeper) Settle(context.Context) error { return k.album.note("settle") }
func (k keeper) Close() error                 { return errors.Join(k.album.note("close"), k.Mem.Close()) }

// openKeeper opens the image of an album.
func openKeeper(t *testing.T, g *block.Graph, a *album, o block.Options) *block.Node {
	t.Helper()
	a.log = nil
	n := blocktest.NewNode(t, g, "n", keeper{blocktest.NewMem(blocktest.MemOptions{Size: 1 << 20}), a}, o)
	blocktest.Change(t, g, func(tx *block.Tx) error { return tx.LoadBitmaps(bg, n) })
	return n
}

func closeNode(g *block.Graph, n *block.Node) error {
	return g.Change(bg, func(tx *block.Tx) error { return tx.RemoveNode(n) })
}

func addPersistent(t *testing.T, g *block.Graph, n *block.Node, name string) *block.DirtyBitmap {
	t.Helper()
	var b *block.DirtyBitmap
	blocktest.Change(t, g, func(tx *block.Tx) (err error) {
		b, err = tx.AddBitmap(n, block.BitmapConfig{Name: name, Persistent: true})
		return err
	})
	return b
}

func (a *album) expect(t *testing.T, log string) {
	t.Helper()
	if got := strings.Join(a.log, ", "); got != log {
		t.Errorf("the driver was asked to %q, not %q", got, log)
	}
	a.log = nil
}

func writeByte(t *testing.T, g *block.Graph, n *block.Node, off int64) {
	t.Helper()
	b := blocktest.Attach(t, g, n, "guest", block.PermWrite, block.PermAll)
	must(t, b.WriteAt(bg, []byte{1}, off, 0))
	blocktest.Detach(t, g, b)
}

func TestPersistentBitmapOutlivesItsNode(t *testing.T) {
	g, a := block.NewGraph(), &album{}
	n := openKeeper(t, g, a, block.Options{})
	addPersistent(t, g, n, "b")
	a.expect(t, "use")
	writeByte(t, g, n, 700<<10)
	a.expect(t, "")
	must(t, closeNode(g, n))
	a.expect(t, "store, settle, close")

	n = openKeeper(t, g, a, block.Options{})
	a.expect(t, "read b")
	b, err := n.FindBitmap("b")
	must(t, err)
	want := block.BitmapInfo{Name: "b", Granularity: 64 << 10, Count: 64 << 10, Recording: true, Persistent: true}
	if b.Info() != want || !b.Snapshot().Test(10) {
		t.Errorf("it came back as %+v", b.Info())
	}
	must(t, closeNode(g, n))
	a.expect(t, "settle, close") // nobody changed anything

	n = openKeeper(t, g, a, block.Options{ReadOnly: true})
	b, err = n.FindBitmap("b")
	must(t, err)
	for what, f := range map[string]func(tx *block.Tx) error{
		"clear":  func(tx *block.Tx) error { return tx.ClearBitmap(b) },
		"stop":   func(tx *block.Tx) error { return tx.SetRecording(b, false) },
		"remove": func(tx *block.Tx) error { return tx.RemoveBitmap(n, b) },
		"add": func(tx *block.Tx) error {
			_, err := tx.AddBitmap(n, block.BitmapConfig{Name: "c", Persistent: true})
			return err
		},
	} {
		if err := g.Change(bg, f); block.KindOf(err) != block.KindReadOnly {
			t.Errorf("%s on a read-only image: %v", what, err)
		}
	}
	must(t, closeNode(g, n))
	a.expect(t, "read b, close")
}

func TestPersistentBitmapAfterACrash(t *testing.T) {
	a := &album{}
	g := block.NewGraph()
	n := openKeeper(t, g, a, block.Options{})
	addPersistent(t, g, n, "b")
	must(t, closeNode(g, n))

	g = block.NewGraph() // idle: a crash costs nothing
	openKeeper(t, g, a, block.Options{})
	g = block.NewGraph()
	n = openKeeper(t, g, a, block.Options{})
	if b, err := n.FindBitmap("b"); err != nil || b.Info().Inconsistent {
		t.Fatalf("after a crash without a writer: %v", err)
	}
	writeByte(t, g, n, 0)
	a.expect(t, "read b, use")

	g = block.NewGraph()
	n = openKeeper(t, g, a, block.Options{})
	b, err := n.FindBitmap("b")
	must(t, err)
	if i := b.Info(); !i.Inconsistent || i.Recording || !i.Persistent || i.Count != 0 {
		t.Errorf("after a crash with a writer: %+v", i)
	}
	writeByte(t, g, n, 0)
	if b.Info().Count != 0 {
		t.Error("an inconsistent bitmap records")
	}
	for what, f := range map[string]func(tx *block.Tx) error{
		"clear":   func(tx *block.Tx) error { return tx.ClearBitmap(b) },
		"record":  func(tx *block.Tx) error { return tx.SetRecording(b, true) },
		"merge":   func(tx *block.Tx) error { return tx.MergeBitmap(b) },
		"reserve": func(*block.Tx) error { return b.SetBusy(true) },
	} {
		if err := g.Change(bg, f); err == nil || !strings.Contains(err.Error(), "inconsistent") {
			t.Errorf("%s of an inconsistent bitmap: %v", what, err)
		}
	}
	must(t, closeNode(g, n))
	if len(a.stored) != 1 || !a.stored[0].Inconsistent {
		t.Errorf("stored again as %+v", a.stored)
	}

	n = openKeeper(t, g, a, block.Options{})
	b, err = n.FindBitmap("b")
	must(t, err)
	must(t, g.Change(bg, func(tx *block.Tx) error { return tx.RemoveBitmap(n, b) }))
	must(t, closeNode(g, n))
	if len(a.stored) != 0 {
		t.Errorf("after its removal there is %+v", a.stored)
	}
}

// An image that cannot store its bitmaps does not close, and goes on as before.
func TestFailingStore(t *testing.T) {
	g, a := block.NewGraph(), &album{}
	n := openKeeper(t, g, a, block.Options{})
	addPersistent(t, g, n, "b")
	for _, step := range []string{"store", "settle"} {
		a.fail = step
		if err := closeNode(g, n); err == nil || !strings.Contains(err.Error(), "album is full") {
			t.Fatalf("closed although %s failed: %v", step, err)
		}
		a.fail = ""
		if found, err := g.Node("n"); err != nil || found != n || n.Driver().(keeper).Closed() > 0 || !a.inUse {
			t.Fatalf("after %s failed, the node is gone or its bitmaps count as stored", step)
		}
		writeByte(t, g, n, 0)
	}
	a.log = nil
	must(t, closeNode(g, n))
	a.expect(t, "store, settle, close")
}

// A disk is not written to as long as its bitmaps cannot be marked as in use.
func TestFailingUse(t *testing.T) {
	g, a := block.NewGraph(), &album{}
	n := openKeeper(t, g, a, block.Options{})
	a.fail = "use"
	err := g.Change(bg, func(tx *block.Tx) error {
		_, err := tx.Attach(n, "guest", block.PermWrite, block.PermAll)
		return err
	})
	if err == nil || len(g.Users(n)) != 0 {
		t.Errorf("there is a writer: %v", err)
	}
	a.fail = ""
}

func TestReopenedKeeper(t *testing.T) {
	g, a := block.NewGraph(), &album{}
	n := openKeeper(t, g, a, block.Options{})
	b := addPersistent(t, g, n, "b")
	writeByte(t, g, n, 0)
	again := func(readOnly bool, fail error) error {
		mem := blocktest.NewMem(blocktest.MemOptions{Size: 1 << 20})
		return g.Change(bg, func(tx *block.Tx) error {
			err := tx.Reopen(bg, []block.Reopen{{Node: n, Options: block.Options{ReadOnly: readOnly}, Open: opens(keeper{mem, a})}})
			return errors.Join(err, fail)
		})
	}
	a.log = nil
	must(t, again(false, nil))
	a.expect(t, "settle, close")
	if !a.inUse || b.Info().Count != 64<<10 {
		t.Error("a reopened image stored its bitmaps, or lost bits")
	}
	failure := errors.New("another step failed")
	if err := again(true, failure); !errors.Is(err, failure) || !a.inUse {
		t.Errorf("taken back: %v, in use: %v", err, a.inUse)
	}
	a.log = nil
	must(t, again(true, nil))
	a.expect(t, "store, settle, close")
	must(t, again(false, nil))
	a.expect(t, "read b, close")
	if now, err := n.FindBitmap("b"); err != nil || now == b || now.Info().Count != 64<<10 || a.inUse {
		t.Errorf("loaded again: %v", err)
	}
	must(t, closeNode(g, n))
}

func TestPersistentBitmapsMove(t *testing.T) {
	g := block.NewGraph()
	a, roomy, full := &album{}, &album{}, &album{}
	n := openKeeper(t, g, a, block.Options{})
	for _, name := range []string{"b", "c"} {
		addPersistent(t, g, n, name)
	}
	if err := g.Change(bg, func(tx *block.Tx) error {
		_, err := tx.AddBitmap(n, block.BitmapConfig{Name: "d", Persistent: true})
		return err
	}); err == nil || !strings.Contains(err.Error(), "2 bitmaps are the most") {
		t.Errorf("a third one: %v", err)
	}
	target := func(name string, a *album) *block.Node {
		return blocktest.NewNode(t, g, name, keeper{blocktest.NewMem(blocktest.MemOptions{Size: 1 << 20}), a}, block.Options{})
	}
	to, crowded := target("to", roomy), target("crowded", full)
	addPersistent(t, g, crowded, "x")
	addPersistent(t, g, crowded, "y")

	writeByte(t, g, n, 0)
	failure := errors.New("another step failed")
	if err := g.Change(bg, func(tx *block.Tx) error { return errors.Join(tx.MoveBitmaps(n, to), failure) }); !errors.Is(err, failure) {
		t.Fatal(err)
	}
	if len(n.Bitmaps()) != 2 || !n.Bitmaps()[0].Info().Persistent {
		t.Error("a move that was taken back took bitmaps away")
	}
	must(t, g.Change(bg, func(tx *block.Tx) error { return tx.MoveBitmaps(n, to) }))
	must(t, closeNode(g, n))
	if len(a.stored) != 0 {
		t.Errorf("the old image still has %+v", a.stored)
	}
	if !roomy.inUse {
		t.Error("the target's image does not say that it is in use")
	}
	must(t, g.Change(bg, func(tx *block.Tx) error { return tx.MoveBitmaps(to, crowded) }))
	for _, b := range crowded.Bitmaps()[2:] {
		if b.Info().Persistent || b.Info().Count != 64<<10 {
			t.Errorf("moved to an image without room as %+v", b.Info())
		}
	}
	must(t, closeNode(g, to))
	must(t, closeNode(g, crowded))
	if len(full.stored) != 2 {
		t.Errorf("stored %+v", full.stored)
	}
}

func TestBitmapsThatCannotBeLoaded(t *testing.T) {
	bits := func(granularity int64) *bitmap.Bitmap {
		b, err := bitmap.New(1<<20, granularity)
		must(t, err)
		return b
	}
	for what, list := range map[string][]block.StoredBitmap{
		"two bitmaps called": {{Name: "b", Granularity: 512, Bits: bits(512)}, {Name: "b", Granularity: 512, Bits: bits(512)}},
		"granularity":        {{Name: "b", Granularity: 100}},
	} {
		g, a := block.NewGraph(), &album{stored: list}
		n := blocktest.NewNode(t, g, "n", keeper{blocktest.NewMem(blocktest.MemOptions{Size: 1 << 20}), a}, block.Options{})
		err := g.Change(bg, func(tx *block.Tx) error { return tx.LoadBitmaps(bg, n) })
		if err == nil || !strings.Contains(err.Error(), what) || len(n.Bitmaps()) > 0 {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// Nodes come to rest from the top down, before the permissions on those below them end.
func TestSettleOrder(t *testing.T) {
	g := block.NewGraph()
	var log bytes.Buffer
	disk := blocktest.NewMem(blocktest.MemOptions{Size: 1 << 20})
	low := blocktest.NewNode(t, g, "low", disk, block.Options{})
	below := low
	for _, name := range []string{"", "top"} {
		c := block.NodeConfig{Name: name, DriverName: "test", Monitor: name != "", Children: []block.Child{{Name: "file", Node: below}},
			Open: func(e []*block.Edge) (block.Driver, error) { return lazy{e[0], name, disk, &log}, nil }}
		below = blocktest.Add(t, g, c)
	}
	must(t, closeNode(g, below))
	if got, want := log.String(), "settle top (write) settle  (write) close top close  "; got != want {
		t.Errorf("%q, not %q", got, want)
	}
	if need, _ := disk.Permissions(); need != 0 {
		t.Errorf("permissions %v remain", need)
	}
}

// lazy writes when it settles.
type lazy struct {
	*block.Edge
	name string
	disk *blocktest.Mem
	log  *bytes.Buffer
}

func (l lazy) ChildPermissions(string, block.Perm, block.Perm) (need, share block.Perm) {
	return block.PermWrite, block.PermAll
}

func (l lazy) Settle(ctx context.Context) error {
	need, _ := l.disk.Permissions()
	fmt.Fprintf(l.log, "settle %s (%v) ", l.name, need&block.PermWrite)
	return l.WriteAt(ctx, []byte{1}, 0, 0)
}

func (l lazy) Close() error {
	fmt.Fprintf(l.log, "close %s ", l.name)
	return nil
}
