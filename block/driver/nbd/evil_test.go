// SPDX-License-Identifier: Apache-2.0

package nbd

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/blkmirror/blkmirror/block"
	wire "github.com/blkmirror/blkmirror/block/nbd"
)

// evil is a server whose every connection follows a script, and then ends.
func evil(t testing.TB, script func(conn net.Conn)) Options {
	t.Helper()
	path := filepath.Join(t.TempDir(), "evil")
	l, err := net.Listen("unix", path)
	must(t, err)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer conn.Close()
				_ = conn.SetDeadline(time.Now().Add(patience))
				script(conn)
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		wg.Wait()
	})
	return Options{Server: Address{Network: "unix", Address: path}}
}

// dialect is what an evil server agrees to.
type dialect struct {
	structured, extended bool
	flags                wire.TransmissionFlags
	size                 uint64
}

const everything = wire.HasFlags | wire.SendFlush | wire.SendFUA | wire.SendTrim | wire.SendWriteZeroes | wire.SendFastZero | wire.SendDF

// shake is a handshake in good order. The metadata context is number 7.
func shake(conn net.Conn, s dialect) bool {
	if s.size == 0 {
		s.size = mib
	}
	if s.flags == 0 {
		s.flags = everything
	}
	_, _ = conn.Write(wire.AppendGreeting(nil, wire.FixedNewstyle|wire.NoZeroes))
	b := make([]byte, 64*kib)
	if _, err := io.ReadFull(conn, b[:wire.ClientFlagsSize]); err != nil {
		return false
	}
	for {
		if _, err := io.ReadFull(conn, b[:wire.OptionSize]); err != nil {
			return false
		}
		h, err := wire.ParseOptionHeader(b)
		if err != nil || h.Length > uint32(len(b)) {
			return false
		}
		if _, err := io.ReadFull(conn, b[:h.Length]); err != nil {
			return false
		}
		answer := func(t wire.ReplyType, body []byte) {
			_, _ = conn.Write(append(wire.OptionReply{Option: h.Option, Type: t, Length: uint32(len(body))}.Append(nil), body...))
		}
		switch {
		case h.Option == wire.OptGo:
			answer(wire.RepInfo, wire.ExportInfo{Size: s.size, Flags: s.flags}.Append(nil))
			answer(wire.RepInfo, wire.BlockSizes{Minimum: 1, Preferred: 4096, Maximum: wire.MaxPayload}.Append(nil))
			answer(wire.RepAck, nil)
			return true
		case h.Option == wire.OptStructuredReply && s.structured, h.Option == wire.OptExtendedHeaders && s.extended:
			answer(wire.RepAck, nil)
		case h.Option == wire.OptSetMetaContext && (s.structured || s.extended):
			answer(wire.RepMetaContext, wire.MetaContext{ID: 7, Name: wire.BaseAllocation}.Append(nil))
			answer(wire.RepAck, nil)
		default:
			answer(wire.RepErrUnsupported, nil)
		}
	}
}

// takeRequest reads a compact request and the data of a write.
func takeRequest(conn net.Conn) (wire.Request, bool) {
	b := make([]byte, wire.RequestSize)
	if _, err := io.ReadFull(conn, b); err != nil {
		return wire.Request{}, false
	}
	r, err := wire.ParseRequest(b)
	if err == nil && r.Command == wire.CmdWrite {
		_, err = io.CopyN(io.Discard, conn, int64(r.Length))
	}
	return r, err == nil && r.Command != wire.CmdDisconnect
}

func chunkOf(flags wire.ChunkFlags, kind wire.ChunkType, cookie uint64, payload ...any) []byte {
	var body []byte
	for _, p := range payload {
		body, _ = binary.Append(body, binary.BigEndian, p)
	}
	return append(wire.Chunk{Flags: flags, Type: kind, Cookie: cookie, Length: uint32(len(body))}.Append(nil), body...)
}

// TestRepliesThatBreakTheRules has one read of 4 KiB at 8192 (or another request) answered with each of these.
func TestRepliesThatBreakTheRules(t *testing.T) {
	data := make([]byte, 4096)
	read := func(ctx context.Context, d *Disk) error { return d.ReadAt(ctx, make([]byte, 4096), 8192) }
	status := func(ctx context.Context, d *Disk) error {
		_, err := d.BlockStatus(ctx, 0, 4096)
		return err
	}
	for _, c := range []struct {
		name  string
		reply func(cookie uint64) []byte
		do    func(ctx context.Context, d *Disk) error
		want  string
	}{
		{"rubbish", func(uint64) []byte { return []byte("HTTP/1.1 400 Bad Request\r\n") }, read, "magic"},
		{"end", func(uint64) []byte { return nil }, read, "server closed the connection"},
		{"half a header", func(c uint64) []byte { return chunkOf(1, 1, c)[:10] }, read, "unexpected EOF"},
		{"half the data", func(c uint64) []byte { return chunkOf(1, 1, c, uint64(8192), data)[:1000] }, read, "unexpected EOF"},
		{"unknown cookie", func(c uint64) []byte { return chunkOf(1, 1, c+1, uint64(8192), data) }, read, "no request"},
		{"cookie with a free slot", func(c uint64) []byte { return chunkOf(1, 1, c^1, uint64(8192), data) }, read, "no request"},
		{"simple reply to a read", func(c uint64) []byte { return append(wire.SimpleReply{Cookie: c}.Append(nil), data...) }, read, "simple reply"},
		{"simple reply in the middle", func(c uint64) []byte {
			return append(chunkOf(0, 1, c, uint64(8192), data[:5]), wire.SimpleReply{Error: 5, Cookie: c}.Append(nil)...)
		}, read, "in the middle"},
		{"extended reply", func(c uint64) []byte { return wire.ExtendedChunk{Flags: 1, Cookie: c}.Append(nil) }, read, "magic"},
		{"data before the range", func(c uint64) []byte { return chunkOf(1, 1, c, uint64(8191), data) }, read, "a part of 4096 bytes at 8191"},
		{"data behind the range", func(c uint64) []byte { return chunkOf(1, 1, c, uint64(8193), data) }, read, "a part of 4096 bytes at 8193"},
		{"data far away", func(c uint64) []byte { return chunkOf(1, 1, c, uint64(1<<63), data) }, read, "a part of"},
		{"too much data", func(c uint64) []byte { return chunkOf(1, 1, c, uint64(8192), data, byte(0)) }, read, "data of"},
		{"no data", func(c uint64) []byte { return chunkOf(1, 1, c, uint64(8192)) }, read, "data of"},
		{"nothing", func(c uint64) []byte { return chunkOf(1, 0, c) }, read, "only parts"},
		{"an empty part that is not", func(c uint64) []byte { return chunkOf(1, 0, c, data) }, read, "empty part"},
		{"only half", func(c uint64) []byte { return chunkOf(1, 1, c, uint64(8192), data[:2048]) }, read, "only parts"},
		{"a gap", func(c uint64) []byte {
			return append(chunkOf(0, 1, c, uint64(8192), data[:100]), chunkOf(1, 1, c, uint64(8292+1), data[:3995])...)
		}, read, "only parts"},
		{"twice the same", func(c uint64) []byte {
			return append(chunkOf(0, 1, c, uint64(8192), data[:2048]), chunkOf(1, 1, c, uint64(8193), data[:2048])...)
		}, read, "second time"},
		{"hole over data", func(c uint64) []byte {
			return append(chunkOf(0, 1, c, uint64(8192), data), chunkOf(1, 2, c, uint64(8192), uint32(1))...)
		}, read, "second time"},
		{"hole too long", func(c uint64) []byte { return chunkOf(1, 2, c, uint64(8192), uint32(4097)) }, read, "a part of 4097 bytes"},
		{"empty hole", func(c uint64) []byte { return chunkOf(1, 2, c, uint64(8192), uint32(0)) }, read, "a part of 0 bytes"},
		{"short hole", func(c uint64) []byte { return chunkOf(1, 2, c, uint64(8192)) }, read, "hole of 8 bytes"},
		{"unknown part", func(c uint64) []byte { return chunkOf(1, 99, c) }, read, "type 99"},
		{"extents of a read", func(c uint64) []byte { return chunkOf(1, 5, c, uint32(7), uint32(4096), uint32(0)) }, read, "extents"},
		{"error without an error", func(c uint64) []byte { return chunkOf(1, wire.ChunkError, c, uint32(0), uint16(0)) }, read, "without an error"},
		{"error cut short", func(c uint64) []byte { return chunkOf(1, wire.ChunkError, c, uint32(5), uint16(100), data[:5]) }, read, "cut short"},
		{"long error", func(c uint64) []byte {
			return wire.Chunk{Flags: 1, Type: wire.ChunkError, Cookie: c, Length: 1 << 31}.Append(nil)
		}, read, "an error of 2147483648 bytes"},
		{"no extents", func(c uint64) []byte { return chunkOf(1, 5, c, uint32(7)) }, status, "extents in 4 bytes"},
		{"other context", func(c uint64) []byte { return chunkOf(1, 5, c, uint32(8), uint32(4096), uint32(0)) }, status, "context 8"},
		{"empty extent", func(c uint64) []byte { return chunkOf(1, 5, c, uint32(7), uint32(0), uint32(0)) }, status, "without length"},
		{"half an extent", func(c uint64) []byte { return chunkOf(1, 5, c, uint32(7), uint32(4096), uint16(0)) }, status, "extents in 10 bytes"},
		{"endless extents", func(c uint64) []byte { return wire.Chunk{Flags: 1, Type: 5, Cookie: c, Length: 1<<32 - 4}.Append(nil) }, status, "extents in"},
		{"status without extents", func(c uint64) []byte { return chunkOf(1, 0, c) }, status, "no extent"},
		{"simple status", func(c uint64) []byte { return wire.SimpleReply{Cookie: c}.Append(nil) }, status, "simple reply"},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := evil(t, func(conn net.Conn) {
				if shake(conn, dialect{structured: true}) {
					if r, ok := takeRequest(conn); ok {
						_, _ = conn.Write(c.reply(r.Cookie))
					}
				}
			})
			d := open(t, o)
			err := c.do(bounded(t), d)
			wantErr(t, err, block.KindIO, c.want)
			wantErr(t, err, block.KindIO, "was lost")
		})
	}
}

// TestOddRepliesThatAreAllowed has data in pieces, out of order, with holes, and errors with words.
func TestOddRepliesThatAreAllowed(t *testing.T) {
	data := pattern(4096, 3)
	step := 0
	o := evil(t, func(conn net.Conn) {
		if !shake(conn, dialect{structured: true}) {
			return
		}
		for ; ; step++ {
			r, ok := takeRequest(conn)
			if !ok {
				return
			}
			c, off := r.Cookie, r.Offset
			for _, b := range [][][]byte{
				{chunkOf(0, 1, c, off+3000, data[3000:]), chunkOf(0, 2, c, off+1000, uint32(1000)), chunkOf(0, 1, c, off, data[:1000]),
					chunkOf(0, 1, c, off+2000, data[2000:3000]), chunkOf(1, 0, c)},
				{chunkOf(0, 1, c, off, data[:10]), chunkOf(0, wire.ChunkErrorOffset, c, uint32(28), uint16(4), []byte("full"), off),
					chunkOf(1, wire.ChunkError, c, uint32(5), uint16(0))},
				{wire.SimpleReply{Error: wire.EPERM, Cookie: c}.Append(nil)},
				{chunkOf(1, 5, c, uint32(7), uint32(512), uint32(3), uint32(1<<31), uint32(0))},
				{chunkOf(1, wire.ChunkError|0x700, c, uint32(108), uint16(0))},
			}[step] {
				_, _ = conn.Write(b)
			}
		}
	})
	d := open(t, o)
	got := bytes.Repeat([]byte{9}, 4096)
	must(t, d.ReadAt(bounded(t), got, 512))
	clear(data[1000:2000])
	if !bytes.Equal(got, data) {
		t.Error("another content")
	}
	wantErr(t, d.ReadAt(bounded(t), got, 512), block.KindNoSpace, "ENOSPC: full")
	wantErr(t, d.WriteAt(bounded(t), got, 512, 0), block.KindPermission, "EPERM")
	// The second extent comes out of the first answer.
	for _, want := range []struct {
		off int64
		e   block.Extent
	}{
		{0, block.Extent{Len: 512, Status: block.StatusZero | block.StatusAllocated}},
		{512, block.Extent{Len: 3584, Status: block.StatusData | block.StatusAllocated}},
	} {
		if e, err := d.BlockStatus(bounded(t), want.off, 4096-want.off); err != nil || e != want.e {
			t.Errorf("at %d there is %+v, %v", want.off, e, err)
		}
	}
	wantErr(t, d.Flush(bounded(t)), block.KindIO, "the server is shutting down")
}

// A server that is about to end refuses what it is asked. The next one carries it out.
func TestServerThatShutsDown(t *testing.T) {
	for name, s := range map[string]dialect{"simple": {}, "structured": {structured: true}} {
		t.Run(name, func(t *testing.T) {
			var connections atomic.Int64
			o := evil(t, func(conn net.Conn) {
				old := connections.Add(1) == 1
				if !shake(conn, s) {
					return
				}
				for {
					r, ok := takeRequest(conn)
					if !ok {
						return
					}
					switch {
					case old && s.structured:
						_, _ = conn.Write(chunkOf(wire.ChunkDone, wire.ChunkError, r.Cookie, uint32(wire.ESHUTDOWN), uint16(0)))
					case old:
						_, _ = conn.Write(wire.SimpleReply{Cookie: r.Cookie, Error: wire.ESHUTDOWN}.Append(nil))
					default:
						_, _ = conn.Write(wire.SimpleReply{Cookie: r.Cookie}.Append(nil))
					}
				}
			})
			o.ReconnectDelay = patience
			d := open(t, o)
			must(t, d.WriteAt(bounded(t), make([]byte, 4096), 512, 0))
			if n := connections.Load(); n != 2 {
				t.Errorf("%d connections", n)
			}
		})
	}
}

// TestBrokenHandshakes stops at each byte of the handshake, or says rubbish there.
func TestBrokenHandshakes(t *testing.T) {
	var good bytes.Buffer
	o := evil(t, func(conn net.Conn) { shake(&tee{Conn: conn, to: &good}, dialect{structured: true}) })
	must(t, open(t, o).Close())
	whole := bytes.Clone(good.Bytes())
	for _, change := range []byte{0, 0xff} {
		for i := range whole {
			b := bytes.Clone(whole[:i])
			if change != 0 {
				b = append(append(b, whole[i]^change), whole[i+1:]...)
			}
			o := evil(t, func(conn net.Conn) {
				_, _ = conn.Write(b)
				_ = conn.(*net.UnixConn).CloseWrite()
				_, _ = io.Copy(io.Discard, conn)
			})
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			d, err := Open(ctx, o)
			if ctx.Err() != nil {
				t.Errorf("byte %d: hangs", i)
			}
			if err == nil {
				_ = d.Close() // some bytes do not matter
			}
			cancel()
		}
	}
}

type tee struct {
	net.Conn
	to *bytes.Buffer
}

func (t *tee) Write(b []byte) (int, error) {
	t.to.Write(b)
	return t.Conn.Write(b)
}

func TestServerThatSaysNothing(t *testing.T) {
	o := evil(t, func(conn net.Conn) { _, _ = io.Copy(io.Discard, conn) })
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	if _, err := Open(ctx, o); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "did not answer in time") {
		t.Errorf("error is %v", err)
	}
}

// FuzzReplies lets a server answer anything to a few requests of each kind.
func FuzzReplies(f *testing.F) {
	f.Add(byte(1), chunkOf(1, 1, 1<<slotBits, uint64(0), make([]byte, 4096)))
	f.Add(byte(0), wire.SimpleReply{Cookie: 1 << slotBits}.Append(nil))
	f.Add(byte(1), chunkOf(1, 5, 6<<slotBits, uint32(7), uint32(4096), uint32(0)))
	f.Add(byte(2), wire.ExtendedChunk{Flags: 1, Cookie: 1 << slotBits}.Append(nil))
	f.Fuzz(func(t *testing.T, how byte, reply []byte) {
		client, server := net.Pipe()
		var wg sync.WaitGroup
		wg.Go(func() {
			defer server.Close()
			go func() { _, _ = io.Copy(io.Discard, server) }()
			_, _ = server.Write(reply)
		})
		d := &Disk{losses: make(chan *session, 1)}
		d.mu.changed = make(chan struct{})
		d.export = export{size: mib, flags: everything, structured: how&1 != 0, extended: how&2 != 0, status: true, context: 7}
		d.limits = limitsOf(&d.export)
		s := &session{disk: d, export: d.export}
		s.conns = []*conn{newConn(s, client, &s.export)}
		d.session.Store(s)
		s.start()
		for _, c := range eachKind {
			wg.Go(func() { _ = c.do(context.Background(), d) })
		}
		wg.Wait()
		s.wait()
	})
}
