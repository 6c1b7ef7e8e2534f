// SPDX-License-Identifier: Apache-2.0

package block_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/bitmap"
	"github.com/blkmirror/blkmirror/block/blocktest"
)

func addBitmap(t testing.TB, g *block.Graph, n *block.Node, c block.BitmapConfig) *block.DirtyBitmap {
	t.Helper()
	var b *block.DirtyBitmap
	blocktest.Change(t, g, func(tx *block.Tx) (err error) {
		b, err = tx.AddBitmap(n, c)
		return err
	})
	return b
}

// dirty lists the chunks of b that are set.
func dirty(b *block.DirtyBitmap) string {
	bits := b.Snapshot()
	var text []string
	for i := range bits.All().End {
		if bits.Test(i) {
			text = append(text, fmt.Sprint(i))
		}
	}
	return strings.Join(text, " ")
}

func expectDirty(t testing.TB, b *block.DirtyBitmap, want string) {
	t.Helper()
	if got := dirty(b); got != want {
		t.Errorf("bitmap '%s': dirty are [%s], want [%s]", b.Name(), got, want)
	}
}

func TestWhatMakesDirty(t *testing.T) {
	for _, c := range []struct {
		name    string
		options block.Options
		do      func(n *block.Node) error
		want    string
	}{
		{"write", block.Options{}, func(n *block.Node) error { return n.WriteAt(bg, make([]byte, 2), 4095, 0) }, "0 1"},
		{"whole chunk", block.Options{}, func(n *block.Node) error { return n.WriteAt(bg, make([]byte, 4096), 8192, 0) }, "2"},
		{"zeroes", block.Options{}, func(n *block.Node) error { return n.WriteZeroes(bg, 8191, 4098, 0) }, "1 2 3"},
		{"detected zeroes", block.Options{DetectZeroes: block.DetectZeroesOn},
			func(n *block.Node) error { return n.WriteAt(bg, make([]byte, 512), 0, 0) }, "0"},
		{"discard", block.Options{Discard: true}, func(n *block.Node) error { return n.Discard(bg, 4096, 1) }, "1"},
		{"discard that is not passed on", block.Options{}, func(n *block.Node) error { return n.Discard(bg, 4096, 1) }, ""},
		{"read", block.Options{}, func(n *block.Node) error { return n.ReadAt(bg, make([]byte, 4096), 0) }, ""},
		{"flush", block.Options{}, func(n *block.Node) error { return n.Flush(bg) }, ""},
		{"nothing", block.Options{}, func(n *block.Node) error { return n.WriteAt(bg, nil, 4096, 0) }, ""},
		{"refused", block.Options{ReadOnly: true}, func(n *block.Node) error {
			if n.WriteAt(bg, make([]byte, 1), 0, 0) == nil {
				return errors.New("a read-only node was written")
			}
			return nil
		}, ""},
	} {
		g, n, m := disk(t, blocktest.MemOptions{Size: 64 * kib}, c.options)
		b := addBitmap(t, g, n, block.BitmapConfig{Name: "b", Granularity: 4096})
		must(t, c.do(n))
		if got := dirty(b); got != c.want {
			t.Errorf("%s: dirty are [%s], want [%s]", c.name, got, c.want)
		}
		if c.want == "" {
			continue
		}
		b.Clear()
		expectDirty(t, b, "")
		m.SetAfterHook(func(context.Context, blocktest.Call) error { return errors.New("carried out and failed") })
		if c.do(n) == nil {
			t.Errorf("%s: no error", c.name)
		}
		if got := dirty(b); got != c.want {
			t.Errorf("%s, failed: dirty are [%s], want [%s]", c.name, got, c.want)
		}
	}
}

// A write must be in the bitmap when its sender is told, and not be lost by a Clear while it was under way.
func TestMarkedAfterTheWriteReturned(t *testing.T) {
	g, n, m := disk(t, blocktest.MemOptions{Size: 64 * kib}, block.Options{})
	b := addBitmap(t, g, n, block.BitmapConfig{Name: "b", Granularity: 4096})
	m.SetAfterHook(func(context.Context, blocktest.Call) error {
		b.Clear()
		return nil
	})
	must(t, n.WriteAt(bg, make([]byte, 1), 0, 0))
	expectDirty(t, b, "0")
}

func TestBitmapsOfAllNodesOnTheWay(t *testing.T) {
	g, n, _ := disk(t, blocktest.MemOptions{Size: 64 * kib, Limits: block.Limits{RequestAlign: 4096}}, block.Options{})
	up := above(t, g, "up", n)
	low := addBitmap(t, g, n, block.BitmapConfig{Name: "b", Granularity: 512})
	high := addBitmap(t, g, up, block.BitmapConfig{Name: "b", Granularity: 512})
	off := addBitmap(t, g, up, block.BitmapConfig{Name: "off", Granularity: 512, Disabled: true})
	must(t, up.WriteAt(bg, make([]byte, 512), 1024, 0))
	expectDirty(t, low, "2") // what was padded did not change
	expectDirty(t, high, "2")
	expectDirty(t, off, "")
	if off.Info().Recording || !high.Info().Recording || high.Count() != 512 || high.Granularity() != 512 {
		t.Errorf("%+v, %+v", off.Info(), high.Info())
	}
}

func TestBitmapErrors(t *testing.T) {
	g, n, _ := disk(t, blocktest.MemOptions{Size: 64 * kib}, block.Options{})
	huge := blocktest.NewNode(t, g, "huge", blocktest.Plain(sized{newMem(0), 1 << 40}), block.Options{})
	most := blocktest.NewNode(t, g, "most", blocktest.Plain(sized{newMem(0), math.MaxInt64 &^ 511}), block.Options{})
	addBitmap(t, g, n, block.BitmapConfig{Name: "taken"})
	for _, c := range []struct {
		n    *block.Node
		c    block.BitmapConfig
		kind block.Kind
		text string
	}{
		{n, block.BitmapConfig{}, block.KindInvalid, "Bitmap name cannot be empty"},
		{n, block.BitmapConfig{Name: strings.Repeat("x", 1024)}, block.KindInvalid, "Bitmap name too long: "},
		{n, block.BitmapConfig{Name: "b", Granularity: 256}, block.KindInvalid, "Granularity must be power of 2 and at least 512"},
		{n, block.BitmapConfig{Name: "b", Granularity: 1536}, block.KindInvalid, "Granularity must be power of 2 and at least 512"},
		{n, block.BitmapConfig{Name: "taken"}, block.KindExists, "Bitmap already exists: taken"},
		{n, block.BitmapConfig{Name: "b", Persistent: true}, block.KindNotSupported,
			"Can't store persistent bitmaps to disk: Operation not supported"},
		{huge, block.BitmapConfig{Name: "b", Granularity: 512}, block.KindNoMemory, "Bitmap 'b' would take more than 256 MiB " +
			"with granularity 512 on a disk of 1099511627776 bytes; granularity 1024 fits"},
		{most, block.BitmapConfig{Name: "b"}, block.KindNoMemory, "Bitmap 'b' would take more than 256 MiB"},
	} {
		err := g.Change(bg, func(tx *block.Tx) error {
			_, err := tx.AddBitmap(c.n, c.c)
			return err
		})
		if err == nil || !strings.HasPrefix(err.Error(), c.text) || block.KindOf(err) != c.kind {
			t.Errorf("%+v: %v, want %s", c.c, err, c.text)
		}
	}
	if _, err := n.FindBitmap("zz"); err == nil || err.Error() != "Dirty bitmap 'zz' not found" {
		t.Errorf("FindBitmap: %v", err)
	}
	if len(huge.Bitmaps()) != 0 || len(n.Bitmaps()) != 1 {
		t.Error("a refused bitmap is there")
	}
}

// sized is a disk that says it is longer than it is.
type sized struct {
	block.Driver
	size int64
}

func (s sized) Size() int64 { return s.size }

func TestDefaultGranularity(t *testing.T) {
	for granularity, want := range map[int64]int64{0: 64 * kib, 512: 4 * kib, 16 * kib: 16 * kib, mib: 64 * kib, 12345: 64 * kib} {
		g, n, _ := disk(t, blocktest.MemOptions{Size: mib, Limits: block.Limits{Granularity: granularity}}, block.Options{})
		if b := addBitmap(t, g, n, block.BitmapConfig{Name: "b"}); b.Granularity() != want {
			t.Errorf("node with %d: bitmap with %d, want %d", granularity, b.Granularity(), want)
		}
	}
}

func TestBusyBitmap(t *testing.T) {
	g, n, _ := disk(t, blocktest.MemOptions{Size: 64 * kib}, block.Options{})
	b := addBitmap(t, g, n, block.BitmapConfig{Name: "b", Granularity: 4096})
	must(t, b.SetBusy(true))
	const want = "Bitmap 'b' is currently in use by another operation and cannot be used"
	for what, do := range map[string]func(tx *block.Tx) error{
		"remove":  func(tx *block.Tx) error { return tx.RemoveBitmap(n, b) },
		"clear":   func(tx *block.Tx) error { return tx.ClearBitmap(b) },
		"disable": func(tx *block.Tx) error { return tx.SetRecording(b, false) },
		"merge":   func(tx *block.Tx) error { return tx.MergeBitmap(b, b.Snapshot()) },
		"resize":  func(tx *block.Tx) error { return tx.Resize(bg, n, 128*kib) },
		"reserve": func(*block.Tx) error { return b.SetBusy(true) },
	} {
		if err := g.Change(bg, do); err == nil || err.Error() != want || block.KindOf(err) != block.KindBusy {
			t.Errorf("%s: %v", what, err)
		}
	}
	must(t, n.WriteAt(bg, make([]byte, 1), 0, 0))
	expectDirty(t, b, "0") // it records
	must(t, b.SetBusy(false))
	blocktest.Change(t, g, func(tx *block.Tx) error { return tx.RemoveBitmap(n, b) })
	if len(n.Bitmaps()) != 0 {
		t.Error("still there")
	}
}

func TestBitmapChangesAreTakenBack(t *testing.T) {
	g, n, _ := disk(t, blocktest.MemOptions{Size: 64 * kib}, block.Options{})
	a := addBitmap(t, g, n, block.BitmapConfig{Name: "a", Granularity: 4096})
	must(t, n.WriteAt(bg, make([]byte, 1), 0, 0))
	b := addBitmap(t, g, n, block.BitmapConfig{Name: "b", Granularity: 8192})
	must(t, n.WriteAt(bg, make([]byte, 1), 16*kib, 0))
	merge := func(tx *block.Tx) error { return tx.MergeBitmap(a, b.Snapshot()) }
	clearA := func(tx *block.Tx) error { return tx.ClearBitmap(a) }
	err := g.Change(bg, func(tx *block.Tx) error {
		for _, step := range []func(tx *block.Tx) error{
			clearA, merge,
			func(tx *block.Tx) error { return tx.SetRecording(a, false) },
			func(tx *block.Tx) error { return tx.RemoveBitmap(n, b) },
			func(tx *block.Tx) error {
				_, err := tx.AddBitmap(n, block.BitmapConfig{Name: "b"})
				return err
			},
		} {
			must(t, step(tx))
		}
		expectDirty(t, a, "4 5")
		if a.Info().Recording {
			t.Error("a is not disabled")
		}
		return errors.New("taken back")
	})
	if err == nil {
		t.Fatal("no error")
	}
	expectDirty(t, a, "0 4")
	expectDirty(t, b, "2")
	if found, err := n.FindBitmap("b"); err != nil || found != b || len(n.Bitmaps()) != 2 || !a.Info().Recording {
		t.Errorf("not as before: %v, %v", n.Bitmaps(), err)
	}
	other, _ := bitmap.New(128*kib, 4096)
	if err := g.Change(bg, func(tx *block.Tx) error { return tx.MergeBitmap(a, other) }); err == nil ||
		err.Error() != "Bitmaps are of different sizes (destination size is 65536, source size is 131072)" {
		t.Errorf("merge of another size: %v", err)
	}
	blocktest.Change(t, g, merge)
	expectDirty(t, a, "0 4 5")
}

func TestMoveBitmaps(t *testing.T) {
	g := block.NewGraph()
	from := blocktest.NewNode(t, g, "from", newMem(64*kib), block.Options{})
	to := blocktest.NewNode(t, g, "to", newMem(64*kib), block.Options{})
	small := blocktest.NewNode(t, g, "small", newMem(32*kib), block.Options{})
	a := addBitmap(t, g, from, block.BitmapConfig{Name: "a", Granularity: 4096})
	b := addBitmap(t, g, from, block.BitmapConfig{Name: "b", Granularity: 4096})
	must(t, b.SetBusy(true))
	names := func(n *block.Node) string {
		var text []string
		for _, b := range n.Bitmaps() {
			text = append(text, b.Name())
		}
		return strings.Join(text, " ")
	}
	move := func(to *block.Node, then error) error {
		return g.Change(bg, func(tx *block.Tx) error {
			if err := tx.MoveBitmaps(from, to); err != nil {
				return err
			}
			return then
		})
	}
	if err := move(small, nil); err == nil || !strings.Contains(err.Error(), "with 32768 bytes") {
		t.Errorf("to a smaller node: %v", err)
	}
	if err := move(to, errors.New("later step")); err == nil || names(from) != "a b" || names(to) != "" {
		t.Errorf("taken back: from has %s, to has %s", names(from), names(to))
	}
	clash := addBitmap(t, g, to, block.BitmapConfig{Name: "b"})
	if err := move(to, nil); block.KindOf(err) != block.KindExists || !strings.Contains(err.Error(), "Bitmap 'b'") ||
		names(from) != "a b" || names(to) != "b" {
		t.Errorf("a name that is taken: %v, from has %s, to has %s", err, names(from), names(to))
	}
	blocktest.Change(t, g, func(tx *block.Tx) error { return tx.RemoveBitmap(to, clash) })
	must(t, move(to, nil))
	if names(from) != "" || names(to) != "a b" {
		t.Errorf("from has %s, to has %s", names(from), names(to))
	}
	must(t, from.WriteAt(bg, make([]byte, 1), 0, 0))
	must(t, to.WriteAt(bg, make([]byte, 1), 4096, 0))
	expectDirty(t, a, "1")
	expectDirty(t, b, "1")
	must(t, move(to, nil)) // nothing to move
}

func TestResizeKeepsBitmapsRight(t *testing.T) {
	g, n, _ := disk(t, blocktest.MemOptions{Size: 16 * kib}, block.Options{})
	up := above(t, g, "up", n)
	for _, on := range []*block.Node{n, up} {
		addBitmap(t, g, on, block.BitmapConfig{Name: "b", Granularity: 4096})
		addBitmap(t, g, on, block.BitmapConfig{Name: "off", Granularity: 4096, Disabled: true})
	}
	resize := func(size int64) {
		t.Helper()
		blocktest.Change(t, g, func(tx *block.Tx) error { return tx.Resize(bg, up, size) })
	}
	expect := func(want, off string) {
		t.Helper()
		for _, on := range []*block.Node{n, up} {
			for name, want := range map[string]string{"b": want, "off": off} {
				b, err := on.FindBitmap(name)
				must(t, err)
				expectDirty(t, b, want)
				if b.Snapshot().Size() != n.Size() {
					t.Errorf("bitmap of %d bytes on a disk of %d", b.Snapshot().Size(), n.Size())
				}
			}
		}
	}
	must(t, up.WriteAt(bg, make([]byte, 1), 4096, 0))
	resize(10 * kib)
	expect("1", "")
	resize(16 * kib) // what came back reads as zeroes now, whatever was there
	expect("1 2 3", "")
	must(t, up.WriteAt(bg, make([]byte, 1), 16*kib-1, 0))
	resize(4 * kib)
	expect("", "")
	resize(8 * kib)
	expect("1", "")
	if err := g.Change(bg, func(tx *block.Tx) error { return tx.Resize(bg, up, 1<<50) }); block.KindOf(err) != block.KindNoMemory ||
		n.Size() != 8*kib {
		t.Errorf("a size that no bitmap can have: %v, now %d bytes", err, n.Size())
	}
	expect("1", "")
}

// TestBitmapAgainstModel has guests write at random, and bitmaps come, go and change meanwhile. What a guest wrote since
// the bitmap was made must be dirty, and nothing else.
func TestBitmapAgainstModel(t *testing.T) {
	const size, granularity, guests = 256 * kib, 1024, 4
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	g, n, m := disk(t, blocktest.MemOptions{Size: size}, block.Options{Discard: true})
	m.SetHook(func(_ context.Context, c blocktest.Call) error {
		if c.Off%7 == 0 {
			return errors.New("scripted")
		}
		return nil
	})
	b := addBitmap(t, g, n, block.BitmapConfig{Name: "b", Granularity: granularity})
	var mu sync.Mutex
	written := make([]bool, size) // the model: bytes
	var wg sync.WaitGroup
	for guest := range guests {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(seed, uint64(guest)))
			buffer := make([]byte, 8*kib)
			for range 300 {
				off := r.Int64N(size)
				length := min(1+r.Int64N(8*kib), size-off)
				switch r.IntN(4) {
				case 0:
					_ = n.WriteZeroes(bg, off, length, 0)
				case 1:
					_ = n.Discard(bg, off, length)
				default:
					_ = n.WriteAt(bg, buffer[:length], off, 0)
				}
				mu.Lock()
				for i := off; i < off+length; i++ {
					written[i] = true
				}
				mu.Unlock()
				if bits := b.Snapshot(); !bits.AllSet(bits.Outward(off, length)) {
					t.Errorf("guest %d: %d+%d returned and is not dirty", guest, off, length)
					return
				}
			}
		})
	}
	wg.Go(func() {
		for i := range 200 {
			other := addBitmap(t, g, n, block.BitmapConfig{Name: fmt.Sprint(i)})
			_ = other.Count()
			blocktest.Change(t, g, func(tx *block.Tx) error {
				must(t, tx.SetRecording(other, false))
				must(t, tx.ClearBitmap(other))
				return tx.RemoveBitmap(n, other)
			})
		}
	})
	wg.Wait()
	bits := b.Snapshot()
	for i := range bits.All().End {
		want := false
		off, length := bits.Bytes(bitmap.Chunks{First: i, End: i + 1})
		for _, w := range written[off : off+length] {
			want = want || w
		}
		if bits.Test(i) != want {
			t.Fatalf("chunk %d: dirty %v, written %v", i, bits.Test(i), want)
		}
	}
	if b.Count() != bits.Len()*granularity {
		t.Errorf("count %d of %d chunks", b.Count(), bits.Len())
	}
}

func TestBitmapsCostNoMemoryPerRequest(t *testing.T) {
	for _, bitmaps := range []int{0, 2} {
		g := block.NewGraph()
		n := blocktest.NewNode(t, g, "n", discardAll{size: mib}, block.Options{Discard: true})
		for i := range bitmaps {
			addBitmap(t, g, n, block.BitmapConfig{Name: fmt.Sprint(i), Granularity: 512})
		}
		p := make([]byte, 4096)
		off := int64(0)
		if allocs := testing.AllocsPerRun(200, func() {
			off = (off + 4096) % mib
			_ = n.WriteAt(bg, p, off, 0)
			_ = n.WriteZeroes(bg, off, 4096, 0)
			_ = n.Discard(bg, off, 4096)
		}); allocs != 0 {
			t.Errorf("%d bitmaps: %v allocations for three requests", bitmaps, allocs)
		}
	}
}

// discardAll is a disk that keeps nothing, and needs no memory for it.
type discardAll struct{ size int64 }

func (d discardAll) Size() int64                                                { return d.size }
func (discardAll) ReadAt(context.Context, []byte, int64) error                  { return nil }
func (discardAll) WriteAt(context.Context, []byte, int64, block.Flags) error    { return nil }
func (discardAll) WriteZeroes(context.Context, int64, int64, block.Flags) error { return nil }
func (discardAll) Discard(context.Context, int64, int64) error                  { return nil }
func (discardAll) Flush(context.Context) error                                  { return nil }
func (discardAll) Close() error                                                 { return nil }

func BenchmarkWriteBesideBitmaps(b *testing.B) {
	for _, bitmaps := range []int{0, 1} {
		b.Run(fmt.Sprint(bitmaps), func(b *testing.B) {
			g := block.NewGraph()
			n := blocktest.NewNode(b, g, "n", discardAll{size: mib}, block.Options{})
			for i := range bitmaps {
				addBitmap(b, g, n, block.BitmapConfig{Name: fmt.Sprint(i)})
			}
			p := make([]byte, 4096)
			for b.Loop() {
				_ = n.WriteAt(bg, p, 4096, 0)
			}
		})
	}
}
