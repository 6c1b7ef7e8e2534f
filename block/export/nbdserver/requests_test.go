// SPDX-License-Identifier: Apache-2.0

package nbdserver

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/blocktest"
	"github.com/blkmirror/blkmirror/block/nbd"
	"github.com/blkmirror/blkmirror/block/nbd/nbdguest"
)

// TestRequests sends every command in every shape and looks at what reaches the disk.
func TestRequests(t *testing.T) {
	const (
		fua, noHole, fast, df, reqOne = nbdguest.FUA, nbdguest.NoHole, nbdguest.FastZero, nbdguest.DF, nbdguest.ReqOne
		read, write, flush, trim      = nbdguest.CmdRead, nbdguest.CmdWrite, nbdguest.CmdFlush, nbdguest.CmdTrim
		cache, zeroes, status         = nbdguest.CmdCache, nbdguest.CmdWriteZeroes, nbdguest.CmdBlockStatus
	)
	type call = blocktest.Call
	type flags = nbdguest.CommandFlags
	for _, test := range []struct {
		name     string
		readOnly bool
		through  bool
		command  nbdguest.CommandType
		flags    flags
		off      uint64
		length   uint32
		want     error
		calls    []call
	}{
		{name: "read", command: read, off: 512, length: 4096, calls: []call{{Op: block.OpRead, Off: 512, Len: 4096}}},
		{name: "read FUA", command: read, flags: fua, length: 1, calls: []call{{Op: block.OpRead, Len: 1}}},
		{name: "read DF", command: read, flags: df, length: 1, calls: []call{{Op: block.OpRead, Len: 1}}},
		{name: "read to the end", command: read, off: diskSize - 1, length: 1, calls: []call{{Op: block.OpRead, Off: diskSize - 1, Len: 1}}},
		{name: "read beyond", command: read, off: diskSize - 1, length: 2, want: nbdguest.EINVAL},
		{name: "read far beyond", command: read, off: 1<<64 - 1, length: 2, want: nbdguest.EINVAL},
		{name: "read too much", command: read, length: 32<<20 + 1, want: nbdguest.EINVAL},
		{name: "read with a flag of zeroes", command: read, flags: noHole, length: 1, want: nbdguest.EINVAL},
		{name: "read with an unknown flag", command: read, flags: 1 << 15, length: 1, want: nbdguest.EINVAL},
		{name: "write", command: write, off: 7, length: 9, calls: []call{{Op: block.OpWrite, Off: 7, Len: 9}}},
		{name: "write FUA", command: write, flags: fua, length: 9, calls: []call{{Op: block.OpWrite, Len: 9, Flags: block.FUA}}},
		{name: "write through", through: true, command: write, length: 9, calls: []call{{Op: block.OpWrite, Len: 9, Flags: block.FUA}}},
		{name: "write beyond", command: write, off: diskSize - 1, length: 2, want: nbdguest.ENOSPC},
		{name: "write DF", command: write, flags: df, length: 2, want: nbdguest.EINVAL},
		{name: "write read-only", readOnly: true, command: write, length: 512, want: nbdguest.EPERM},
		{name: "write nothing", command: write},
		{name: "write too much", command: write, length: 32<<20 + 1, want: nbdguest.EINVAL},
		{name: "flush", command: flush, calls: []call{{Op: block.OpFlush}}},
		{name: "flush read-only", readOnly: true, command: flush, calls: []call{{Op: block.OpFlush}}},
		{name: "trim", command: trim, off: 4096, length: 8192, calls: []call{{Op: block.OpTrim, Off: 4096, Len: 8192}}},
		{name: "trim FUA", command: trim, flags: fua, length: 8192, calls: []call{{Op: block.OpTrim, Len: 8192}, {Op: block.OpFlush}}},
		{name: "trim beyond", command: trim, off: diskSize, length: 512, want: nbdguest.EINVAL},
		{name: "trim read-only", readOnly: true, command: trim, length: 512, want: nbdguest.EPERM},
		{name: "zeroes", command: zeroes, length: 4096, calls: []call{{Op: block.OpZero, Len: 4096, Flags: block.MayUnmap}}},
		{name: "zeroes allocated", command: zeroes, flags: noHole, length: 4096, calls: []call{{Op: block.OpZero, Len: 4096}}},
		{name: "zeroes fast", command: zeroes, flags: noHole | fast | fua, length: 4096, calls: []call{{Op: block.OpZero, Len: 4096, Flags: block.NoFallback | block.FUA}}},
		{name: "zeroes beyond", command: zeroes, off: 1, length: diskSize, want: nbdguest.ENOSPC},
		{name: "zeroes read-only", readOnly: true, command: zeroes, length: 1, want: nbdguest.EPERM},
		{name: "cache", command: cache, length: 4096},
		{name: "cache beyond", command: cache, off: diskSize, length: 1, want: nbdguest.EINVAL},
		{name: "status beyond", command: status, off: diskSize, length: 1, want: nbdguest.EINVAL},
		{name: "status with a flag of reads", command: status, flags: df, length: 1, want: nbdguest.EINVAL},
		{name: "status one", command: status, flags: reqOne, length: 512, calls: []call{{Op: block.OpStatus, Len: 512}}},
		{name: "unknown", command: 4711, length: 512, want: nbdguest.EINVAL},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := newHouse(t, Options{})
			h.must(h.server.AddExport(t.Context(), Config{ID: "e", Node: h.node, Writable: !test.readOnly, WriteThrough: test.through}))
			c := h.dial("d")
			h.disk.ResetCalls()
			command := nbdguest.Command{Type: test.command, Flags: test.flags, Offset: test.off, Length: test.length}
			if test.command == write {
				command.Data = make([]byte, test.length)
			}
			err := c.Submit(command).Wait(h.bounded())
			if !errors.Is(err, test.want) {
				t.Errorf("outcome is %v, want %v", err, test.want)
			}
			got := h.disk.Calls()
			if !slices.EqualFunc(got, test.calls, func(a, b call) bool {
				return a.Op == b.Op && a.Off == b.Off && a.Len == b.Len && a.Flags == b.Flags
			}) {
				t.Errorf("the disk got %v, want %v", got, test.calls)
			}
			h.must(c.Flush(h.bounded())) // the connection is as good as before
			h.must(c.Disconnect(h.bounded()))
			h.must(wait(h, h.closed, "the end"))
		})
	}
}

func TestFailures(t *testing.T) {
	h := newHouse(t, Options{})
	h.export("d")
	structured := h.dial("d")
	simple, err := nbdguest.Dial(h.bounded(), "unix", h.path, "d", nbdguest.Options{SimpleReplies: true})
	h.must(err)
	defer simple.Close()
	for kind, want := range map[block.Kind]nbdguest.Errno{
		block.KindIO: nbdguest.EIO, block.KindNoSpace: nbdguest.ENOSPC, block.KindNotSupported: nbdguest.ENOTSUP,
		block.KindShutdown: nbdguest.ESHUTDOWN, block.KindPermission: nbdguest.EPERM,
	} {
		h.disk.SetHook(func(context.Context, blocktest.Call) error { return &block.Error{Kind: kind} })
		for _, c := range []*nbdguest.Client{structured, simple} {
			for what, err := range map[string]error{
				"read":  c.ReadAt(h.bounded(), make([]byte, 512), 0),
				"write": c.WriteAt(h.bounded(), make([]byte, 512), 0, 0),
				"flush": c.Flush(h.bounded()),
			} {
				if !errors.Is(err, want) {
					t.Errorf("%s that fails with %v: %v", what, kind, err)
				}
			}
		}
		if _, err := structured.Status(h.bounded(), 0, 512); !errors.Is(err, want) {
			t.Errorf("status that fails with %v: %v", kind, err)
		}
	}
	h.disk.SetHook(nil)
	h.must(structured.ReadAt(h.bounded(), make([]byte, 512), 0))
}

func TestFastZero(t *testing.T) {
	h := newHouse(t, Options{})
	h.node = blocktest.NewNode(t, h.graph, "slow", blocktest.NewMem(blocktest.MemOptions{Size: diskSize, SlowZeroes: true}), block.Options{})
	h.export("d")
	c := h.dial("d")
	if err := c.Zero(h.bounded(), 0, 4096, nbdguest.FastZero); !errors.Is(err, nbdguest.ENOTSUP) {
		t.Errorf("a fast zero on a disk that is slow at it: %v", err)
	}
	h.must(c.Zero(h.bounded(), 0, 4096, 0))
}

func TestDataComesBack(t *testing.T) {
	h := newHouse(t, Options{})
	h.export("d")
	for _, simple := range []bool{false, true} {
		c, err := nbdguest.Dial(h.bounded(), "unix", h.path, "d", nbdguest.Options{SimpleReplies: simple})
		h.must(err)
		for i, n := range []int{1, 511, 4096, 65536, inputSize - nbd.RequestSize, inputSize, inputSize + 1, 3 << 20} {
			want := bytes.Repeat([]byte{byte(i + 1), 77}, n/2+1)[:n]
			h.must(c.WriteAt(h.bounded(), want, uint64(i), 0))
			got := make([]byte, n)
			h.must(c.ReadAt(h.bounded(), got, uint64(i)))
			if !bytes.Equal(got, want) {
				t.Errorf("simple %v: %d bytes came back different", simple, n)
			}
		}
		h.must(c.Disconnect(h.bounded()))
	}
}

// TestBlockStatus wants extents of equal status joined, and no more of them than the client asked for.
func TestBlockStatus(t *testing.T) {
	h := newHouse(t, Options{})
	disk := blocktest.NewMem(blocktest.MemOptions{Size: 64 << 20, StatusMost: 8192})
	h.node = blocktest.NewNode(t, h.graph, "status", disk, block.Options{Discard: true})
	h.export("d")
	c := h.dial("d")
	for off := uint64(0); off < 1<<20; off += 256 << 10 {
		h.must(c.WriteAt(h.bounded(), bytes.Repeat([]byte{1}, 64<<10), off, 0))
	}
	ask := func(flags nbdguest.CommandFlags, off uint64, n uint32) []nbdguest.Extent {
		r := c.Submit(nbdguest.Command{Type: nbdguest.CmdBlockStatus, Flags: flags, Offset: off, Length: n})
		h.must(r.Wait(h.bounded()))
		return r.Extents(nbdguest.BaseAllocation)
	}
	const hole = nbdguest.StateHole | nbdguest.StateZero
	want := []nbdguest.Extent{
		{Offset: 1 << 10, Length: 63 << 10}, {Offset: 64 << 10, Length: 192 << 10, Flags: hole},
		{Offset: 256 << 10, Length: 64 << 10}, {Offset: 320 << 10, Length: 80 << 10, Flags: hole},
	}
	if got := ask(0, 1<<10, 399<<10); !slices.Equal(got, want) {
		t.Errorf("extents are %v, want %v", got, want)
	}
	if got := ask(nbdguest.ReqOne, 1<<10, 399<<10); !slices.Equal(got, want[:1]) {
		t.Errorf("one extent is %v, want %v", got, want[:1])
	}
	// More extents than a reply holds: the rest is left out.
	for off := uint64(0); off < 64<<20; off += 8192 {
		h.must(c.WriteAt(h.bounded(), []byte{1}, off, 0))
	}
	got := ask(0, 0, 64<<20)
	if len(got) < 1000 || len(got) > statusBytes/nbd.DescriptorSize {
		t.Errorf("%d extents in one reply", len(got))
	}
}
