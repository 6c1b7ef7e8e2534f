// SPDX-License-Identifier: Apache-2.0

package block_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"syscall"
	"testing"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/blocktest"
)

// What the options of a node make of the requests to it.
func TestOptions(t *testing.T) {
	zero, data := make([]byte, 4096), append(make([]byte, 4095), 1)
	write := func(p []byte, flags block.Flags) func(*block.Node) error {
		return func(n *block.Node) error { return n.WriteAt(bg, p, 0, flags) }
	}
	zeroes := func(flags block.Flags) func(*block.Node) error {
		return func(n *block.Node) error { return n.WriteZeroes(bg, 0, 4096, flags) }
	}
	discard := func(n *block.Node) error { return n.Discard(bg, 0, 4096) }
	flush := func(n *block.Node) error { return n.Flush(bg) }
	empty := func(n *block.Node) error { return n.WriteAt(bg, nil, 0, block.FUA) }
	on, unmap := block.DetectZeroesOn, block.DetectZeroesUnmap
	for _, c := range []struct {
		name string
		o    block.Options
		do   func(*block.Node) error
		want string
	}{
		{"zero data", block.Options{}, write(zero, 0), "[write 0+4096]"},
		{"zero data, detect", block.Options{DetectZeroes: on}, write(zero, block.FUA), "[write-zeroes 0+4096 fua]"},
		{"zero data, detect and discard", block.Options{DetectZeroes: on, Discard: true}, write(zero, 0), "[write-zeroes 0+4096]"},
		{"zero data, detect unmap", block.Options{DetectZeroes: unmap, Discard: true}, write(zero, 0), "[write-zeroes 0+4096 unmap]"},
		{"one byte of data, detect", block.Options{DetectZeroes: unmap, Discard: true}, write(data, 0), "[write 0+4096]"},
		{"explicit zeroes without unmap, detect unmap", block.Options{DetectZeroes: unmap, Discard: true}, zeroes(0), "[write-zeroes 0+4096]"},
		{"zeroes that may unmap", block.Options{}, zeroes(block.MayUnmap | block.NoFallback), "[write-zeroes 0+4096 fast]"},
		{"zeroes that may unmap, discard", block.Options{Discard: true}, zeroes(block.MayUnmap), "[write-zeroes 0+4096 unmap]"},
		{"discard", block.Options{Discard: true}, discard, "[discard 0+4096]"},
		{"discard ignored", block.Options{}, discard, "[]"},
		{"flush", block.Options{}, flush, "[flush 0+0]"},
		{"flush dropped", block.Options{NoFlush: true}, flush, "[]"},
		{"durable write without flushes", block.Options{NoFlush: true}, write(data, block.FUA), "[write 0+4096]"},
		{"durable zeroes without flushes", block.Options{NoFlush: true}, zeroes(block.FUA), "[write-zeroes 0+4096]"},
		{"empty durable write", block.Options{}, empty, "[flush 0+0]"},
		{"empty durable write without flushes", block.Options{NoFlush: true}, empty, "[]"},
	} {
		_, n, m := disk(t, blocktest.MemOptions{Size: mib}, c.o)
		if err := c.do(n); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		if got := fmt.Sprint(m.Calls()); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}

func TestZeroesAreWrittenWhereTheyMustBe(t *testing.T) {
	for _, c := range []struct {
		name  string
		o     blocktest.MemOptions
		plain bool
		flags block.Flags
		want  string // calls of write only; "" for an error
	}{
		{"refused", blocktest.MemOptions{NoZeroes: true}, false, block.FUA, "[write 512+1048576 write 1049088+1048576 write 2097664+512 fua]"},
		{"unknown to the driver", blocktest.MemOptions{}, true, 0, "[write 512+1048576 write 1049088+1048576 write 2097664+512]"},
		{"in pieces", blocktest.MemOptions{NoZeroes: true, Limits: block.Limits{RequestAlign: 512, MaxTransfer: mib - 512}}, false, 0,
			"[write 512+1048064 write 1048576+1048064 write 2096640+1536]"},
		{"not wanted", blocktest.MemOptions{NoZeroes: true}, false, block.NoFallback, ""},
		{"not wanted from a driver that cannot", blocktest.MemOptions{}, true, block.NoFallback, ""},
		{"slow", blocktest.MemOptions{SlowZeroes: true}, false, block.NoFallback, ""},
		{"not slow", blocktest.MemOptions{SlowZeroes: true}, false, 0, "[]"},
	} {
		c.o.Size = 4 * mib
		m := blocktest.NewMemOf(bytes.Repeat([]byte{1}, 4*mib), c.o)
		var d block.Driver = m
		if c.plain {
			d = blocktest.Plain(m)
		}
		n := blocktest.NewNode(t, block.NewGraph(), "disk", d, block.Options{})
		const off, length = 512, 2*mib + 512
		err := n.WriteZeroes(bg, off, length, c.flags)
		if c.want == "" {
			if block.KindOf(err) != block.KindNotSupported || err == nil || m.Bytes()[off] != 1 {
				t.Errorf("%s: %v", c.name, err)
			}
			continue
		}
		must(t, err)
		writes := []blocktest.Call{}
		for _, call := range m.Calls() {
			if call.Op == block.OpWrite {
				writes = append(writes, call)
			}
		}
		if got := fmt.Sprint(writes); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
		if b := m.Bytes(); !block.IsZero(b[off:off+length]) || b[off-1] != 1 || b[off+length] != 1 {
			t.Errorf("%s: the wrong range is zero", c.name)
		}
	}
}

func TestDriversWithoutDiscardOrStatus(t *testing.T) {
	for _, d := range []block.Driver{blocktest.Plain(newMem(mib)), blocktest.NewMem(blocktest.MemOptions{Size: mib, NoDiscard: true, NoStatus: true})} {
		n := blocktest.NewNode(t, block.NewGraph(), "disk", d, block.Options{Discard: true})
		must(t, n.Discard(bg, 0, mib))
		if e, err := n.BlockStatus(bg, 0, mib); err != nil || e != (block.Extent{Len: mib, Status: block.StatusData | block.StatusAllocated}) {
			t.Errorf("status %v, %v", e, err)
		}
	}
	_, n, _ := disk(t, blocktest.MemOptions{Size: mib}, block.Options{})
	if n.CanZeroUnmap() {
		t.Error("can unmap without discard")
	}
}

func TestErrorsSayWhere(t *testing.T) {
	g, a, m := disk(t, blocktest.MemOptions{Size: mib}, block.Options{Discard: true})
	b := blocktest.Attach(t, g, above(t, g, "parent", a), "user", readWrite, block.PermAll)
	for errno, kind := range map[syscall.Errno]block.Kind{
		syscall.EIO: block.KindIO, syscall.ENOSPC: block.KindNoSpace, syscall.EDQUOT: block.KindNoSpace, syscall.ENOMEM: block.KindNoMemory,
		syscall.EACCES: block.KindPermission, syscall.EROFS: block.KindReadOnly, syscall.ESHUTDOWN: block.KindShutdown,
	} {
		m.SetHook(func(context.Context, blocktest.Call) error { return errno })
		for op, err := range map[block.Op]error{
			block.OpRead:   b.ReadAt(bg, make([]byte, 10), 20),
			block.OpWrite:  b.WriteAt(bg, make([]byte, 10), 20, 0),
			block.OpZero:   b.WriteZeroes(bg, 20, 10, 0),
			block.OpTrim:   b.Discard(bg, 20, 10),
			block.OpStatus: func() error { _, err := a.BlockStatus(bg, 20, 10); return err }(),
		} {
			var e *block.Error
			if !errors.As(err, &e) || e.Kind != kind || e.Op != op || e.Node != "disk" || e.Off != 20 || e.Len != 10 || !errors.Is(err, errno) {
				t.Errorf("%v of %v: %#v", op, errno, err)
				continue
			}
			if want := fmt.Sprintf("%s of node 'disk' at offset 20, length 10: %v", op, errno); err.Error() != want {
				t.Errorf("%q, want %q", err, want)
			}
		}
		if err := b.Flush(bg); err == nil || err.Error() != fmt.Sprintf("flush of node 'disk': %v", errno) {
			t.Errorf("flush: %v", err)
		}
	}
	if err := a.ReadAt(bg, make([]byte, 10), mib-5); err == nil ||
		err.Error() != "read of node 'disk' at offset 1048571, length 10: the request goes beyond the end of the disk at 1048576" {
		t.Errorf("error %v", err)
	}
}

func TestStatsCount(t *testing.T) {
	_, n, m := disk(t, blocktest.MemOptions{Size: mib}, block.Options{Discard: true})
	must(t, n.ReadAt(bg, make([]byte, 100), 0))
	must(t, n.WriteAt(bg, make([]byte, 200), 1000, 0))
	must(t, n.WriteZeroes(bg, 300, 300, 0))
	must(t, n.Discard(bg, 0, 400))
	must(t, n.Flush(bg))
	m.SetHook(func(context.Context, blocktest.Call) error { return syscall.EIO })
	for _, err := range []error{n.ReadAt(bg, make([]byte, 1), 0), n.WriteAt(bg, make([]byte, 1), mib-1, 0), n.Flush(bg)} {
		if err == nil {
			t.Error("no error")
		}
	}
	s := n.Stats()
	got := fmt.Sprint(s.Reads.Load(), s.ReadBytes.Load(), s.FailedReads.Load(), s.Writes.Load(), s.WriteBytes.Load(), s.FailedWrites.Load(),
		s.Zeroes.Load(), s.ZeroBytes.Load(), s.Trims.Load(), s.TrimBytes.Load(), s.Flushes.Load(), s.FailedFlushes.Load(), s.WriteHighest.Load())
	if want := "2 101 1 2 201 1 1 300 1 400 2 1 1200"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

func TestKindOf(t *testing.T) {
	for err, want := range map[error]block.Kind{
		errors.New("x"):                    block.KindIO,
		context.Canceled:                   block.KindShutdown,
		fmt.Errorf("x: %w", syscall.EBUSY): block.KindBusy,
		block.NotSupported:                 block.KindNotSupported,
		fmt.Errorf("x: %w", &block.Error{Kind: block.KindExists, Err: syscall.EIO}): block.KindExists,
	} {
		if got := block.KindOf(err); got != want {
			t.Errorf("%v: %v, want %v", err, got, want)
		}
	}
	if block.KindNoSpace.String() != "No space left on device" {
		t.Error(block.KindNoSpace)
	}
}

func TestRequestsDoNotAllocate(t *testing.T) {
	size := int64(mib)
	d := &silent{size}
	g := block.NewGraph()
	n := blocktest.NewNode(t, g, "disk", d, block.Options{DetectZeroes: block.DetectZeroesOn})
	b := blocktest.Attach(t, g, n, "guest", readWrite, block.PermAll)
	p := bytes.Repeat([]byte{1}, 4096)
	for name, do := range map[string]func() error{
		"read":  func() error { return b.ReadAt(bg, p, 0) },
		"write": func() error { return b.WriteAt(bg, p, 0, block.FUA) },
		"flush": func() error { return b.Flush(bg) },
		"status": func() error {
			_, err := b.BlockStatus(bg, 0, 4096)
			return err
		},
		"buffer": func() error {
			block.GetBuffer(mib).Release()
			return nil
		},
	} {
		if count := testing.AllocsPerRun(100, func() { must(t, do()) }); count > 0 {
			t.Errorf("%s: %v allocations", name, count)
		}
	}
}

// silent is a driver that does nothing.
type silent struct{ size int64 }

func (s *silent) Size() int64                                               { return s.size }
func (s *silent) ReadAt(context.Context, []byte, int64) error               { return nil }
func (s *silent) WriteAt(context.Context, []byte, int64, block.Flags) error { return nil }
func (s *silent) Flush(context.Context) error                               { return nil }
func (s *silent) Close() error                                              { return nil }
