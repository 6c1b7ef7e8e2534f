// SPDX-License-Identifier: Apache-2.0

package blocktest

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/blkmirror/blkmirror/block"
)

// Suite says what to test and what not to expect of it.
type Suite struct {
	// Open returns a new disk of size bytes that reads as zeroes. It is closed by the suite.
	Open func(t *testing.T, size int64) block.Driver
	// Reopen opens the disk once more that Open returned last, after it was closed; nil if that cannot be.
	Reopen func(t *testing.T) block.Driver
	// StoresNothing is a disk that always reads as zeroes.
	StoresNothing bool
}

// disk is a driver under test in a node of its own, which passes on discards.
func (s Suite) disk(t *testing.T, size int64) *block.Node {
	t.Helper()
	d := s.Open(t, size)
	if d.Size() != size {
		t.Fatalf("size %d, asked for %d", d.Size(), size)
	}
	return NewNode(t, block.NewGraph(), "disk", d, block.Options{Discard: true})
}

// TestDriver runs the tests that every driver must pass.
func TestDriver(t *testing.T, s Suite) {
	t.Run("ReadsWhatWasWritten", s.readsWhatWasWritten)
	t.Run("NewDiskIsZero", s.newDiskIsZero)
	t.Run("Zeroes", s.zeroes)
	t.Run("Discard", s.discard)
	t.Run("Bounds", s.bounds)
	t.Run("ZeroLength", s.zeroLength)
	t.Run("StatusCoversDisk", s.statusCoversDisk)
	t.Run("OddSize", s.oddSize)
	t.Run("Random", s.random)
	t.Run("Concurrent", s.concurrent)
	t.Run("Overlapping", s.overlapping)
	t.Run("Resize", s.resize)
	t.Run("Reopen", s.reopen)
}

const (
	kib = 1 << 10
	mib = 1 << 20
)

var bg = context.Background()

// pattern fills a new buffer with bytes that depend on place and seed and are never zero.
func pattern(n int, seed byte) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i%251) ^ seed | 1
	}
	return b
}

func (s Suite) expect(t *testing.T, n *block.Node, off int64, want []byte) {
	t.Helper()
	if s.StoresNothing {
		want = make([]byte, len(want))
	}
	got := bytes.Repeat([]byte{0xa5}, len(want))
	if err := n.ReadAt(bg, got, off); err != nil {
		t.Fatalf("read %d+%d: %v", off, len(want), err)
	}
	if bytes.Equal(got, want) {
		return
	}
	for i := range got {
		if got[i] != want[i] {
			t.Fatalf("read %d+%d: byte %d is %#x, not %#x", off, len(want), off+int64(i), got[i], want[i])
		}
	}
}

func must(t *testing.T, what string, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

func (s Suite) readsWhatWasWritten(t *testing.T) {
	n := s.disk(t, 4*mib)
	for i, r := range [][2]int64{{0, 512}, {0, 4096}, {64 * kib, 64 * kib}, {1*mib + 3, 5}, {4095, 2}, {4*mib - 1, 1}, {mib, 3 * mib}} {
		for _, flags := range []block.Flags{0, block.FUA} {
			data := pattern(int(r[1]), byte(i*16))
			must(t, fmt.Sprintf("write %d+%d", r[0], r[1]), n.WriteAt(bg, data, r[0], flags))
			s.expect(t, n, r[0], data)
		}
	}
	must(t, "flush", n.Flush(bg))
}

func (s Suite) newDiskIsZero(t *testing.T) {
	n := s.disk(t, 256*kib)
	s.expect(t, n, 0, make([]byte, 256*kib))
}

func (s Suite) zeroes(t *testing.T) {
	for _, flags := range []block.Flags{0, block.MayUnmap, block.FUA, block.MayUnmap | block.FUA, block.NoFallback, block.NoFallback | block.MayUnmap} {
		n := s.disk(t, 512*kib)
		data := pattern(512*kib, 7)
		must(t, "write", n.WriteAt(bg, data, 0, 0))
		for _, r := range [][2]int{{0, 512}, {4096, 4096}, {10_000, 1}, {64 * kib, 128 * kib}, {300_001, 77_777}, {512*kib - 512, 512}} {
			err := n.WriteZeroes(bg, int64(r[0]), int64(r[1]), flags)
			if err != nil && flags&block.NoFallback != 0 && block.KindOf(err) == block.KindNotSupported {
				must(t, "read", n.ReadAt(bg, data[r[0]:r[0]+r[1]], int64(r[0]))) // its edges may be done already
				continue
			}
			must(t, fmt.Sprintf("zeroes %d+%d flags %d", r[0], r[1], flags), err)
			clear(data[r[0] : r[0]+r[1]])
		}
		s.expect(t, n, 0, data)
		s.checkStatus(t, n, data)
		// What is zero can be written again.
		must(t, "write", n.WriteAt(bg, data[100:300], 64*kib, 0))
		copy(data[64*kib:], data[100:300])
		s.expect(t, n, 0, data)
	}
}

func (s Suite) discard(t *testing.T) {
	n := s.disk(t, 512*kib)
	data := pattern(512*kib, 9)
	must(t, "write", n.WriteAt(bg, data, 0, 0))
	const off, length = 128 * kib, 128 * kib
	must(t, "discard", n.Discard(bg, off, length))
	// The range reads as before or as something else, and status says zero only where that is so.
	if err := n.ReadAt(bg, data[off:off+length], off); err != nil {
		t.Fatal(err)
	}
	s.expect(t, n, 0, data)
	s.checkStatus(t, n, data)
	must(t, "small discard", n.Discard(bg, 512, 512))
	must(t, "odd discard", n.Discard(bg, 300_001, 3))
	must(t, "read", n.ReadAt(bg, data[512:1024], 512))
	must(t, "read", n.ReadAt(bg, data[300_001:300_004], 300_001))
	s.expect(t, n, 0, data)
	must(t, "write", n.WriteAt(bg, pattern(length, 3), off, 0))
	copy(data[off:], pattern(length, 3))
	s.expect(t, n, 0, data)
	s.checkStatus(t, n, data)
}

// checkStatus walks the disk: extents are within what was asked, go on to the end, and are zero where they say so.
func (s Suite) checkStatus(t *testing.T, n *block.Node, content []byte) {
	t.Helper()
	if s.StoresNothing {
		content = make([]byte, len(content))
	}
	for _, step := range []int64{n.Size(), 4096, 1000} {
		for off := int64(0); off < n.Size(); {
			ask := min(step, n.Size()-off)
			e, err := n.BlockStatus(bg, off, ask)
			if err != nil {
				t.Fatalf("status %d+%d: %v", off, ask, err)
			}
			if e.Len < 1 || e.Len > ask {
				t.Fatalf("status %d+%d: answer for %d bytes", off, ask, e.Len)
			}
			if e.Status&block.StatusZero != 0 && !block.IsZero(content[off:off+e.Len]) {
				t.Fatalf("status %d+%d: zero for %d bytes, but there is data", off, ask, e.Len)
			}
			off += e.Len
		}
	}
}

func (s Suite) bounds(t *testing.T) {
	n := s.disk(t, 64*kib)
	b := make([]byte, 1024)
	for _, off := range []int64{-1, 64*kib - 1023, 64 * kib, 1 << 62, 1<<63 - 1, -1 << 63} {
		for op, err := range map[block.Op]error{
			block.OpRead:  n.ReadAt(bg, b, off),
			block.OpWrite: n.WriteAt(bg, b, off, 0),
			block.OpZero:  n.WriteZeroes(bg, off, 1024, 0),
			block.OpTrim:  n.Discard(bg, off, 1024),
		} {
			if block.KindOf(err) != block.KindInvalid || err == nil {
				t.Errorf("%s at %d: %v", op, off, err)
			}
		}
	}
	if got := n.Driver().Size(); got != 64*kib {
		t.Errorf("the disk is %d bytes now", got)
	}
}

func (s Suite) zeroLength(t *testing.T) {
	n := s.disk(t, 64*kib)
	for _, off := range []int64{0, 100, 64 * kib} {
		must(t, "read", n.ReadAt(bg, nil, off))
		must(t, "write", n.WriteAt(bg, nil, off, block.FUA))
		must(t, "zeroes", n.WriteZeroes(bg, off, 0, block.FUA))
		must(t, "discard", n.Discard(bg, off, 0))
	}
}

func (s Suite) statusCoversDisk(t *testing.T) {
	n := s.disk(t, 2*mib)
	content := make([]byte, 2*mib)
	for _, off := range []int{0, 300 * kib, mib, 2*mib - 4096} {
		copy(content[off:], pattern(4096, 1))
		must(t, "write", n.WriteAt(bg, content[off:off+4096], int64(off), 0))
		s.checkStatus(t, n, content)
	}
	must(t, "zeroes", n.WriteZeroes(bg, 300*kib, 2048, block.MayUnmap))
	clear(content[300*kib : 300*kib+2048])
	s.checkStatus(t, n, content)
}

// oddSize has a length that is a multiple of a sector but of no larger unit.
func (s Suite) oddSize(t *testing.T) {
	const size = 64*kib + 1536
	n := s.disk(t, size)
	data := pattern(2048, 5)
	must(t, "write", n.WriteAt(bg, data, size-2048, block.FUA))
	s.expect(t, n, size-2048, data)
	must(t, "write", n.WriteAt(bg, data[:3], size-3, 0))
	copy(data[2045:], data[:3])
	s.expect(t, n, size-2048, data)
	must(t, "zeroes", n.WriteZeroes(bg, size-700, 700, 0))
	clear(data[2048-700:])
	s.expect(t, n, size-2048, data)
	whole := append(make([]byte, size-2048), data...)
	s.expect(t, n, 0, whole)
	s.checkStatus(t, n, whole)
	must(t, "discard", n.Discard(bg, size-512, 512))
	must(t, "flush", n.Flush(bg))
	if got := n.Driver().Size(); got != size {
		t.Errorf("the disk is %d bytes now", got)
	}
}

// random compares the disk with a slice of bytes that gets the same requests.
func (s Suite) random(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 1))
	const size = 384*kib + 512
	n := s.disk(t, size)
	model := make([]byte, size)
	for i := range 400 {
		off := random.Int64N(size)
		length := 1 + random.Int64N(min(size-off, 40*kib))
		if random.IntN(2) == 0 {
			off, length = off&^511, (length+511)&^511
			length = min(length, size-off)
		}
		switch random.IntN(6) {
		case 0, 1:
			data := pattern(int(length), byte(i))
			must(t, "write", n.WriteAt(bg, data, off, block.Flags(random.IntN(2))*block.FUA))
			copy(model[off:], data)
		case 2:
			must(t, "zeroes", n.WriteZeroes(bg, off, length, block.Flags(random.IntN(2))*block.MayUnmap))
			clear(model[off : off+length])
		case 3:
			must(t, "discard", n.Discard(bg, off, length))
			s.expectOutside(t, n, model, off, length)
			must(t, "read", n.ReadAt(bg, model[off:off+length], off))
		case 4:
			s.expect(t, n, off, model[off:off+length])
		case 5:
			s.checkStatus(t, n, model)
		}
	}
	s.expect(t, n, 0, model)
}

// expectOutside checks that nothing changed but the range.
func (s Suite) expectOutside(t *testing.T, n *block.Node, model []byte, off, length int64) {
	t.Helper()
	s.expect(t, n, 0, model[:off])
	s.expect(t, n, off+length, model[off+length:])
}

// concurrent has writers on disks of their own next to each other, whose borders are not aligned.
func (s Suite) concurrent(t *testing.T) {
	const writers, each = 8, 10_007
	n := s.disk(t, 128*kib)
	model := make([]byte, 128*kib)
	var wg sync.WaitGroup
	errs := make(chan error, writers)
	for w := range writers {
		wg.Go(func() {
			random := rand.New(rand.NewPCG(uint64(w), 2))
			own := model[w*each : (w+1)*each]
			for i := range 60 {
				off := random.IntN(each)
				length := 1 + random.IntN(each-off)
				at := int64(w*each + off)
				var err error
				switch random.IntN(4) {
				case 0:
					clear(own[off : off+length])
					err = n.WriteZeroes(bg, at, int64(length), block.MayUnmap)
				case 1:
					_, err = n.BlockStatus(bg, at, int64(length))
				default:
					copy(own[off:], pattern(length, byte(w*16+i)))
					err = n.WriteAt(bg, own[off:off+length], at, 0)
				}
				if err == nil && i%10 == 0 {
					err = n.Flush(bg)
				}
				if err != nil {
					errs <- err
					return
				}
			}
		})
	}
	wg.Wait()
	close(errs)
	for err := range errs {
		t.Fatal(err)
	}
	s.expect(t, n, 0, model)
	s.checkStatus(t, n, model)
}

// overlapping has requests of every kind on the same range at once: none may fail, and each sector is in the end as
// one of them left it.
func (s Suite) overlapping(t *testing.T) {
	const size, writers = 64 * kib, 6
	n := s.disk(t, size)
	var wg sync.WaitGroup
	errs := make(chan error, writers*32)
	for w := range writers {
		wg.Go(func() {
			data := bytes.Repeat([]byte{byte(w + 1)}, size)
			for i := range 30 {
				var err error
				switch (w + i) % 6 {
				case 0:
					err = n.WriteZeroes(bg, 0, size, block.MayUnmap)
				case 1:
					err = n.ReadAt(bg, make([]byte, size), 0)
				case 2:
					_, err = n.BlockStatus(bg, 0, size)
				default:
					err = n.WriteAt(bg, data, 0, 0)
				}
				if err != nil {
					errs <- err
				}
			}
		})
	}
	wg.Wait()
	close(errs)
	for err := range errs {
		t.Fatal(err)
	}
	got := make([]byte, size)
	must(t, "read", n.ReadAt(bg, got, 0))
	for off := 0; off < size; off += 512 {
		if got[off] > writers || !bytes.Equal(got[off:off+512], bytes.Repeat(got[off:off+1], 512)) {
			t.Fatalf("the sector at %d is nobody's", off)
		}
	}
}

func (s Suite) resize(t *testing.T) {
	d := s.Open(t, 64*kib)
	if _, ok := d.(block.Resizer); !ok {
		must(t, "close", d.Close())
		t.Skip("cannot be resized")
	}
	g := block.NewGraph()
	n := NewNode(t, g, "disk", d, block.Options{})
	data := pattern(64*kib, 2)
	must(t, "write", n.WriteAt(bg, data, 0, 0))
	for _, size := range []int64{128 * kib, 32 * kib, 64 * kib} {
		Change(t, g, func(tx *block.Tx) error { return tx.Resize(bg, n, size) })
		if n.Size() != size || d.Size() != size {
			t.Fatalf("node of %d, driver of %d bytes after resizing to %d", n.Size(), d.Size(), size)
		}
		data = append(data[:min(len(data), int(size))], make([]byte, max(0, int(size)-len(data)))...)
		s.expect(t, n, 0, data)
		s.checkStatus(t, n, data)
	}
}

func (s Suite) reopen(t *testing.T) {
	if s.Reopen == nil {
		t.Skip("cannot be opened again")
	}
	n := s.disk(t, 64*kib)
	data := pattern(10_000, 4)
	must(t, "write", n.WriteAt(bg, data, 5000, block.FUA))
	must(t, "close", n.Driver().Close())
	again := NewNode(t, block.NewGraph(), "again", s.Reopen(t), block.Options{})
	if again.Size() != 64*kib {
		t.Fatalf("size %d", again.Size())
	}
	s.expect(t, again, 5000, data)
	s.expect(t, again, 0, make([]byte, 5000))
}
