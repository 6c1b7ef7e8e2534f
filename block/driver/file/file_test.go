// SPDX-License-Identifier: Apache-2.0

package file

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/blkmirror/blkmirror/block"
)

var bg = context.Background()

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestOpenErrors(t *testing.T) {
	dir := t.TempDir()
	image := newImage(t, dir, 4096)
	fifo := filepath.Join(dir, "fifo")
	must(t, unix.Mkfifo(fifo, 0o600))
	for _, c := range []struct {
		o    Options
		text string
		kind block.Kind
	}{
		{Options{}, "The 'file' block driver requires a file name", block.KindInvalid},
		{Options{HostDevice: true}, "The 'host_device' block driver requires a file name", block.KindInvalid},
		{Options{Filename: dir + "/none"}, "Could not open '" + dir + "/none': No such file or directory", block.KindNotFound},
		{Options{Filename: dir}, "Could not open '" + dir + "': Is a directory", block.KindIO},
		{Options{Filename: dir, ReadOnly: true}, "Could not open '" + dir + "': Is a directory", block.KindIO},
		{Options{Filename: "/dev/null"}, "'file' driver requires '/dev/null' to be a regular file", block.KindInvalid},
		{Options{Filename: fifo, ReadOnly: true}, "'file' driver requires '" + fifo + "' to be a regular file", block.KindInvalid},
		{Options{Filename: image, HostDevice: true},
			"'host_device' driver requires '" + image + "' to be either a character or block device", block.KindInvalid},
		{Options{Filename: image, AIO: AIONative},
			"aio=native was specified, but it requires cache.direct=on, which was not specified.", block.KindInvalid},
	} {
		f, err := Open(c.o)
		if err == nil {
			_ = f.Close()
			t.Errorf("%+v: opened", c.o)
			continue
		}
		if err.Error() != c.text || block.KindOf(err) != c.kind {
			t.Errorf("%+v: %q (%v), want %q (%v)", c.o, err, block.KindOf(err), c.text, c.kind)
		}
	}
}

func TestReadOnlyRefusesWrites(t *testing.T) {
	f := mustOpen(t, Options{Filename: newImage(t, t.TempDir(), 4096), ReadOnly: true})
	if err := f.WriteAt(bg, make([]byte, 512), 0, 0); block.KindOf(err) != block.KindReadOnly {
		t.Errorf("error %v", err)
	}
}

func TestSizeIsInWholeSectorsAndTheTailExtendsTheFile(t *testing.T) {
	for name, change := range map[string]func(f *File) error{
		"write":  func(f *File) error { return f.WriteAt(bg, bytes.Repeat([]byte{7}, 512), 512, 0) },
		"zeroes": func(f *File) error { return f.WriteZeroes(bg, 512, 512, 0) },
	} {
		image := filepath.Join(t.TempDir(), "odd")
		must(t, os.WriteFile(image, bytes.Repeat([]byte{1}, 1000), 0o600))
		f := mustOpen(t, Options{Filename: image})
		if f.Size() != 1024 {
			t.Fatalf("size %d", f.Size())
		}
		got := bytes.Repeat([]byte{9}, 1024)
		must(t, f.ReadAt(bg, got, 0))
		if !bytes.Equal(got, append(bytes.Repeat([]byte{1}, 1000), make([]byte, 24)...)) {
			t.Error("what lies behind the end does not read as zeroes")
		}
		if e, err := f.BlockStatus(bg, 0, 1024); err != nil || e != (block.Extent{Len: 1024, Status: statusData}) {
			t.Errorf("status %v, %v", e, err)
		}
		must(t, f.Discard(bg, 512, 512))
		if length := fileLength(t, image); length != 1000 {
			t.Errorf("a discard made the file %d bytes long", length)
		}
		must(t, change(f))
		if length := fileLength(t, image); length != 1024 {
			t.Errorf("%s of the tail: the file is %d bytes long", name, length)
		}
	}
}

func fileLength(t testing.TB, name string) int64 {
	t.Helper()
	st, err := os.Stat(name)
	must(t, err)
	return st.Size()
}

func allocated(t testing.TB, f *File) int64 {
	t.Helper()
	n, err := f.AllocatedBytes()
	must(t, err)
	return n
}

func TestZeroesAndDiscardsKeepOrFreeSpace(t *testing.T) {
	const size = 1 << 20
	for _, fs := range []struct {
		name string
		dir  func(testing.TB) string
	}{{"disk", func(t testing.TB) string { return t.TempDir() }}, {"tmpfs", tmpfs}} {
		t.Run(fs.name, func(t *testing.T) {
			f := mustOpen(t, Options{Filename: newImage(t, fs.dir(t), size)})
			must(t, f.WriteZeroes(bg, 0, size, 0))
			if got := allocated(t, f); got < size {
				t.Errorf("zeroes in a hole: %d bytes allocated", got)
			}
			must(t, f.WriteAt(bg, bytes.Repeat([]byte{1}, size), 0, block.FUA))
			must(t, f.WriteZeroes(bg, 0, size, block.FUA|block.NoFallback))
			if got := allocated(t, f); got < size {
				t.Errorf("zeroes over data: %d bytes allocated", got)
			}
			must(t, f.WriteAt(bg, bytes.Repeat([]byte{1}, size), 0, 0))
			must(t, f.WriteZeroes(bg, 0, size/2, block.MayUnmap))
			if got := allocated(t, f); got > size/2+4096 || !f.CanZeroUnmap() {
				t.Errorf("zeroes that may unmap: %d bytes allocated", got)
			}
			must(t, f.Discard(bg, size/2, size/2))
			if got := allocated(t, f); got > 4096 {
				t.Errorf("discard: %d bytes allocated", got)
			}
			got := make([]byte, size)
			must(t, f.ReadAt(bg, got, 0))
			if !block.IsZero(got) {
				t.Error("not zero")
			}
			if fileLength(t, f.FileName()) != size {
				t.Error("the length changed")
			}
		})
	}
}

// A mode that the kernel does not know is left out from then on, down to the answer that there is none.
func TestModesThatDoNotWork(t *testing.T) {
	const size = 64 << 10
	f := mustOpen(t, Options{Filename: newImage(t, t.TempDir(), size)})
	data := bytes.Repeat([]byte{1}, size)
	f.noZeroRange.Store(true)
	must(t, f.WriteAt(bg, data, 0, 0))
	must(t, f.WriteZeroes(bg, 0, size, 0))
	if got := allocated(t, f); got < size {
		t.Errorf("punch and allocate: %d bytes allocated", got)
	}
	must(t, f.ReadAt(bg, data, 0))
	if !block.IsZero(data) {
		t.Error("punch and allocate: not zero")
	}
	f.noAllocate.Store(true)
	must(t, f.WriteAt(bg, bytes.Repeat([]byte{1}, size), 0, 0))
	if err := f.WriteZeroes(bg, 0, size, 0); err != block.NotSupported {
		t.Errorf("without a way: %v", err)
	}
	must(t, f.ReadAt(bg, data, 0))
	if block.IsZero(data) {
		t.Error("the range was changed although nothing could be done")
	}
	f.noPunch.Store(true)
	if err := f.WriteZeroes(bg, 0, size, block.MayUnmap); err != block.NotSupported || f.CanZeroUnmap() {
		t.Errorf("without holes: %v", err)
	}
	if err := f.Discard(bg, 0, size); err != block.NotSupported {
		t.Errorf("discard without holes: %v", err)
	}
	f.noSeek.Store(true)
	if e, err := f.BlockStatus(bg, 0, size); err != nil || e != (block.Extent{Len: size, Status: statusData}) {
		t.Errorf("status without seeking: %v, %v", e, err)
	}
}

func TestUnknownFallocateModeIsRemembered(t *testing.T) {
	f := mustOpen(t, Options{Filename: newImage(t, t.TempDir(), 4096)})
	const unknown = 0x4000
	if err := f.fallocate(&f.noZeroRange, unknown, 0, 512); err != block.NotSupported || !f.noZeroRange.Load() {
		t.Errorf("an unknown mode: %v", err)
	}
}

// Our own holes show at once although data is remembered, and what is remembered is right when others make holes.
func TestBlockStatus(t *testing.T) {
	const unit, size = 64 << 10, 8 * 64 << 10
	f := mustOpen(t, Options{Filename: newImage(t, t.TempDir(), size)})
	status := func(off, n int64) block.Extent {
		t.Helper()
		e, err := f.BlockStatus(bg, off, n)
		must(t, err)
		return e
	}
	expect := func(off, n int64, want block.Extent) {
		t.Helper()
		if got := status(off, n); got != want {
			t.Errorf("status %d+%d: %v, want %v", off, n, got, want)
		}
	}
	expect(0, size, block.Extent{Len: size, Status: statusHole})
	must(t, f.WriteAt(bg, bytes.Repeat([]byte{1}, 4*unit), unit, block.FUA))
	expect(0, size, block.Extent{Len: unit, Status: statusHole})
	expect(unit, size-unit, block.Extent{Len: 4 * unit, Status: statusData})
	expect(unit+1, 10, block.Extent{Len: 10, Status: statusData})
	expect(5*unit, unit, block.Extent{Len: unit, Status: statusHole})
	for name, punch := range map[string]func(off int64) error{
		"discard": func(off int64) error { return f.Discard(bg, off, unit) },
		"zeroes":  func(off int64) error { return f.WriteZeroes(bg, off, unit, block.MayUnmap) },
	} {
		must(t, f.WriteAt(bg, bytes.Repeat([]byte{1}, 4*unit), unit, block.FUA))
		expect(unit, size-unit, block.Extent{Len: 4 * unit, Status: statusData})
		must(t, punch(2*unit))
		if got := status(2*unit, unit); got.Status != statusHole {
			t.Errorf("%s: our own hole is called data", name)
		}
		expect(unit, size-unit, block.Extent{Len: unit, Status: statusData})
		expect(3*unit, unit, block.Extent{Len: unit, Status: statusData})
	}
	// The last lookup remembered [3,5) units as data; a write into the hole before must not be called a hole.
	must(t, f.WriteAt(bg, bytes.Repeat([]byte{1}, unit), 6*unit, 0))
	if got := status(6*unit, unit); got.Status != statusData {
		t.Error("fresh data is called a hole")
	}
	// Shrinking and growing leaves a hole.
	must(t, f.Resize(bg, unit))
	must(t, f.Resize(bg, size))
	expect(6*unit, unit, block.Extent{Len: unit, Status: statusHole})
}

// An answer that was looked up before a hole was made is not remembered after it.
func TestRememberedDataAndAHoleInBetween(t *testing.T) {
	var e dataExtent
	_, before := e.find(0)
	e.forget(100, 10)
	e.keep(0, 4096, before)
	if end, _ := e.find(0); end != 0 {
		t.Errorf("data up to %d is remembered", end)
	}
	_, now := e.find(0)
	e.keep(0, 4096, now)
	e.forget(4096, 512) // beside it
	if end, _ := e.find(10); end != 4096 {
		t.Errorf("data up to %d is remembered", end)
	}
}

func TestDirectAlignmentIsProbed(t *testing.T) {
	f := mustOpen(t, Options{Filename: newImage(t, t.TempDir(), 64<<10), Direct: true})
	limits := f.Limits()
	if limits.RequestAlign < 512 || limits.RequestAlign > 4096 || limits.MemoryAlign < 1 {
		t.Errorf("limits %+v", limits)
	}
	if l := mustOpen(t, Options{Filename: f.FileName()}).Limits(); l.RequestAlign > 1 || l.MemoryAlign > 1 {
		t.Errorf("limits without direct: %+v", l)
	}
}

func TestAFailedFlushStaysFailed(t *testing.T) {
	f := mustOpen(t, Options{Filename: newImage(t, t.TempDir(), 4096)})
	var lost error = unix.EIO
	f.flushError.Store(&lost)
	if err := f.Flush(bg); err != lost {
		t.Errorf("flush: %v", err)
	}
	if err := f.WriteAt(bg, make([]byte, 512), 0, block.FUA); err != lost {
		t.Errorf("durable write: %v", err)
	}
	if err := f.WriteZeroes(bg, 0, 512, block.FUA); err != lost {
		t.Errorf("durable zeroes: %v", err)
	}
}

func TestRequestsDoNotAllocate(t *testing.T) {
	f := mustOpen(t, Options{Filename: newImage(t, t.TempDir(), 1<<20)})
	b, long := make([]byte, 4096), make([]byte, bulk)
	for name, do := range map[string]func() error{
		"read":    func() error { return f.ReadAt(bg, b, 8192) },
		"write":   func() error { return f.WriteAt(bg, b, 8192, 0) },
		"long":    func() error { return f.WriteAt(bg, long, 8192, 0) },
		"zeroes":  func() error { return f.WriteZeroes(bg, 8192, 4096, block.MayUnmap) },
		"discard": func() error { return f.Discard(bg, 8192, 4096) },
		"status":  func() error { _, err := f.BlockStatus(bg, 0, 1<<20); return err },
	} {
		if n := testing.AllocsPerRun(100, func() { must(t, do()) }); n > 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

func TestErrorsSpeakAsTheCLibraryDoes(t *testing.T) {
	_, err := Open(Options{Filename: filepath.Join(t.TempDir(), strings.Repeat("x", 300))})
	if err == nil || !strings.HasSuffix(err.Error(), ": File name too long") {
		t.Errorf("error %v", err)
	}
}
