// SPDX-License-Identifier: Apache-2.0

package nbdserver

import (
	"context"
	"io"
	"net"
	"testing"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/blocktest"
	"github.com/blkmirror/blkmirror/block/nbd"
)

// nothing is a disk that costs nothing. Its second half is a hole.
type nothing struct{}

const nothingSize = 1 << 30

func (nothing) Size() int64                                               { return nothingSize }
func (nothing) ReadAt(context.Context, []byte, int64) error               { return nil }
func (nothing) WriteAt(context.Context, []byte, int64, block.Flags) error { return nil }
func (nothing) WriteZeroes(context.Context, int64, int64, block.Flags) error {
	return nil
}
func (nothing) Discard(context.Context, int64, int64) error { return nil }
func (nothing) Flush(context.Context) error                 { return nil }
func (nothing) Close() error                                { return nil }
func (nothing) BlockStatus(_ context.Context, off, n int64) (block.Extent, error) {
	if off >= nothingSize/2 {
		return block.Extent{Len: n, Status: block.StatusZero}, nil
	}
	return block.Extent{Len: min(n, nothingSize/2-off), Status: block.StatusData | block.StatusAllocated}, nil
}

// path is one way of a request through the server.
type path struct {
	name     string
	extended bool // headers, with the context base:allocation; else simple ones
	request  nbd.Request
	depth    int
	allocs   float64 // the most allocations of a request, without those of the node
}

// paths are those that have to be fast. Allocations may become fewer, never more.
var paths = []path{
	{"read/4K/qd1", false, nbd.Request{Command: nbd.CmdRead, Length: 4 << 10}, 1, 0},
	{"read/4K/qd16", false, nbd.Request{Command: nbd.CmdRead, Length: 4 << 10}, 16, 0},
	{"read/256K/qd8", false, nbd.Request{Command: nbd.CmdRead, Length: 256 << 10}, 8, 0},
	{"write/4K/qd1", false, nbd.Request{Command: nbd.CmdWrite, Length: 4 << 10}, 1, 0},
	{"write/4K/qd16", false, nbd.Request{Command: nbd.CmdWrite, Length: 4 << 10}, 16, 0},
	{"write/256K/qd8", false, nbd.Request{Command: nbd.CmdWrite, Length: 256 << 10}, 8, 0},
	{"zero/64K/qd16", false, nbd.Request{Command: nbd.CmdWriteZeroes, Length: 64 << 10}, 16, 0},
	{"trim/64K/qd16", false, nbd.Request{Command: nbd.CmdTrim, Length: 64 << 10}, 16, 0},
	{"flush/qd1", false, nbd.Request{Command: nbd.CmdFlush}, 1, 0},
	{"extended/read/256K/qd8", true, nbd.Request{Command: nbd.CmdRead, Length: 256 << 10}, 8, 0},
	{"extended/hole/1M/qd8", true, nbd.Request{Command: nbd.CmdRead, Length: 1 << 20, Offset: nothingSize / 2}, 8, 0},
	{"extended/status/qd8", true, nbd.Request{Command: nbd.CmdBlockStatus, Length: nothingSize}, 8, 0},
}

// pump is a client that does as little as possible: it sends depth requests at once and waits for all replies.
type pump struct {
	conn    net.Conn
	out, in []byte
}

func newPump(tb testing.TB, h *house, name string, way path) *pump {
	tb.Helper()
	p, r, reply := &pump{}, way.request, nbd.SimpleReplySize
	payload := 0
	if r.Command == nbd.CmdWrite {
		payload = int(r.Length)
	}
	if way.extended {
		p.conn, _, _ = h.extendedTransmission(name, nbd.BaseAllocation)
		chunks, payloads := h.ask(p.conn, r, make([]byte, payload))
		reply = 0
		for i := range chunks {
			reply += nbd.ExtendedChunkSize + len(payloads[i])
		}
	} else {
		p.conn = h.rawTransmission(name)
		if r.Command == nbd.CmdRead {
			reply += int(r.Length)
		}
	}
	for i := range way.depth {
		r.Cookie = uint64(i)
		if way.extended {
			p.out = r.AppendExtended(p.out)
		} else {
			p.out = r.Append(p.out)
		}
		p.out = append(p.out, make([]byte, payload)...)
	}
	p.in = make([]byte, way.depth*reply)
	return p
}

func (p *pump) round() error {
	if _, err := p.conn.Write(p.out); err != nil {
		return err
	}
	_, err := io.ReadFull(p.conn, p.in)
	return err
}

func nothingHouse(tb testing.TB) *house {
	h := newHouse(tb, Options{})
	h.node = blocktest.NewNode(tb, h.graph, "nothing", nothing{}, block.Options{Discard: true})
	h.export("nothing")
	return h
}

func BenchmarkTransmission(b *testing.B) {
	for _, way := range paths {
		b.Run(way.name, func(b *testing.B) {
			p := newPump(b, nothingHouse(b), "nothing", way)
			b.ReportAllocs()
			b.SetBytes(int64(way.request.Length))
			for i := 0; i < b.N; i += way.depth {
				if err := p.round(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// TestAllocations wants no way of a request through the server to allocate more than it did when that was last written down.
func TestAllocations(t *testing.T) {
	if raceDetector {
		t.Skip("with the race detector pools drop some of what they are given")
	}
	for _, way := range paths {
		h := nothingHouse(t)
		p := newPump(t, h, "nothing", way)
		got := testing.AllocsPerRun(200, func() { h.must(p.round()) }) / float64(way.depth)
		if got > way.allocs+0.5 { // the pools may be emptied by the collector now and then
			t.Errorf("%s: %.1f allocations per request, %.1f are known", way.name, got, way.allocs)
		}
	}
}
