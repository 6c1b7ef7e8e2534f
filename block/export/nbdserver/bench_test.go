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

// nothing is a disk that costs nothing.
type nothing struct{}

func (nothing) Size() int64                                               { return 1 << 30 }
func (nothing) ReadAt(context.Context, []byte, int64) error               { return nil }
func (nothing) WriteAt(context.Context, []byte, int64, block.Flags) error { return nil }
func (nothing) Flush(context.Context) error                               { return nil }
func (nothing) Close() error                                              { return nil }

// pump is a client that does as little as possible: it sends depth requests at once and waits for all replies.
type pump struct {
	conn    net.Conn
	out, in []byte
}

func newPump(tb testing.TB, h *house, name string, c nbd.Command, depth int) *pump {
	tb.Helper()
	conn := h.rawTransmission(name)
	p := &pump{conn: conn}
	reply := nbd.SimpleReplySize
	for i := range depth {
		p.out = nbd.Request{Command: c, Cookie: uint64(i), Offset: uint64(i) * 4096, Length: 4096}.Append(p.out)
		if c == nbd.CmdWrite {
			p.out = append(p.out, make([]byte, 4096)...)
		}
	}
	if c == nbd.CmdRead {
		reply += 4096
	}
	p.in = make([]byte, depth*reply)
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
	h.node = blocktest.NewNode(tb, h.graph, "nothing", nothing{}, block.Options{})
	h.export("nothing")
	return h
}

func BenchmarkTransmission(b *testing.B) {
	for _, bench := range []struct {
		name    string
		command nbd.Command
		depth   int
	}{
		{"read/qd1", nbd.CmdRead, 1}, {"read/qd16", nbd.CmdRead, 16},
		{"write/qd1", nbd.CmdWrite, 1}, {"write/qd16", nbd.CmdWrite, 16},
	} {
		b.Run(bench.name, func(b *testing.B) {
			p := newPump(b, nothingHouse(b), "nothing", bench.command, bench.depth)
			b.ReportAllocs()
			b.SetBytes(4096)
			for i := 0; i < b.N; i += bench.depth {
				if err := p.round(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func TestNoAllocationPerRequest(t *testing.T) {
	for _, c := range []nbd.Command{nbd.CmdRead, nbd.CmdWrite} {
		for _, depth := range []int{1, 16} {
			h := nothingHouse(t)
			p := newPump(t, h, "nothing", c, depth)
			buf := make([]byte, 4096)
			below := testing.AllocsPerRun(100, func() { // what the node itself allocates
				if c == nbd.CmdRead {
					h.must(h.node.ReadAt(t.Context(), buf, 0))
				} else {
					h.must(h.node.WriteAt(t.Context(), buf, 0, 0))
				}
			})
			got := testing.AllocsPerRun(200, func() { h.must(p.round()) })/float64(depth) - below
			if got > 0.5 { // the pools may be emptied by the collector now and then
				t.Errorf("%v at depth %d: %.1f allocations per request", c, depth, got)
			}
		}
	}
}
