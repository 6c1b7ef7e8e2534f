// SPDX-License-Identifier: Apache-2.0

package nbdguest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"reflect"
	"testing"
)

// Every way in which a reply can break the protocol ends the connection, and
// with it the request.
func TestViolations(t *testing.T) {
	read := Command{Type: CmdRead, Offset: 4096, Length: 8}
	unbroken := Command{Type: CmdRead, Offset: 4096, Length: 8, Flags: DF}
	status := Command{Type: CmdBlockStatus, Offset: 0, Length: 4096}
	one := Command{Type: CmdBlockStatus, Offset: 0, Length: 4096, Flags: ReqOne}
	flush := Command{Type: CmdFlush}
	for _, test := range []struct {
		name       string
		structured bool
		command    Command
		reply      func(s *script, cookie uint64)
	}{
		{"magic", true, flush, func(s *script, _ uint64) { s.send(uint32(1)) }},
		{"cookie, simple", true, flush, func(s *script, cookie uint64) { s.simple(cookie+1, 0) }},
		{"cookie, structured", true, flush, func(s *script, cookie uint64) { s.chunk(cookie+1, 1, chunkNone, 0) }},
		{"simple read", true, read, func(s *script, cookie uint64) { s.simple(cookie, 0, "12345678") }},
		{"simple status", true, status, func(s *script, cookie uint64) { s.simple(cookie, 0) }},
		{"structured unasked", false, flush, func(s *script, cookie uint64) { s.chunk(cookie, 1, chunkNone, 0) }},
		{"none with data", true, flush, func(s *script, cookie uint64) { s.chunk(cookie, 1, chunkNone, 4, "data") }},
		{"none not last", true, flush, func(s *script, cookie uint64) { s.chunk(cookie, 0, chunkNone, 0) }},
		{"unknown chunk", true, flush, func(s *script, cookie uint64) { s.chunk(cookie, 1, 77, 0) }},
		{"data for a flush", true, flush, func(s *script, cookie uint64) { s.chunk(cookie, 1, chunkData, 9, uint64(0), "x") }},
		{"no data", true, read, func(s *script, cookie uint64) { s.chunk(cookie, 1, chunkNone, 0) }},
		{"too little data", true, read, func(s *script, cookie uint64) { s.chunk(cookie, 1, chunkData, 12, uint64(4096), "1234") }},
		{"empty data", true, read, func(s *script, cookie uint64) { s.chunk(cookie, 1, chunkData, 8, uint64(4096)) }},
		{"data before", true, read, func(s *script, cookie uint64) { s.chunk(cookie, 1, chunkData, 12, uint64(4095), "1234") }},
		{"data behind", true, read, func(s *script, cookie uint64) { s.chunk(cookie, 1, chunkData, 12, uint64(4101), "1234") }},
		{"data far behind", true, read, func(s *script, cookie uint64) { s.chunk(cookie, 1, chunkData, 12, ^uint64(0), "1234") }},
		{"huge data", true, read, func(s *script, cookie uint64) { s.chunk(cookie, 1, chunkData, 1<<32-1, uint64(4096)) }},
		{"overlap", true, read, func(s *script, cookie uint64) {
			s.chunk(cookie, 0, chunkData, 12, uint64(4096), "1234")
			s.chunk(cookie, 1, chunkData, 13, uint64(4099), "12345")
		}},
		{"hole overlaps", true, read, func(s *script, cookie uint64) {
			s.chunk(cookie, 0, chunkData, 12, uint64(4100), "1234")
			s.chunk(cookie, 1, chunkHole, 12, uint64(4096), uint32(8))
		}},
		{"empty hole", true, read, func(s *script, cookie uint64) { s.chunk(cookie, 1, chunkHole, 12, uint64(4096), uint32(0)) }},
		{"long hole", true, read, func(s *script, cookie uint64) { s.chunk(cookie, 1, chunkHole, 13, uint64(4096), uint32(8), uint8(0)) }},
		{"fragmented", true, unbroken, func(s *script, cookie uint64) {
			s.chunk(cookie, 0, chunkData, 12, uint64(4096), "1234")
			s.chunk(cookie, 1, chunkData, 12, uint64(4100), "1234")
		}},
		{"hole unfragmented", true, unbroken, func(s *script, cookie uint64) { s.chunk(cookie, 1, chunkHole, 12, uint64(4096), uint32(8)) }},
		{"no extents", true, status, func(s *script, cookie uint64) { s.chunk(cookie, 1, chunkStatus, 4, uint32(7)) }},
		{"status missing", true, status, func(s *script, cookie uint64) { s.chunk(cookie, 1, chunkNone, 0) }},
		{"odd extents", true, status, func(s *script, cookie uint64) { s.chunk(cookie, 1, chunkStatus, 13, uint32(7), uint64(0), uint8(0)) }},
		{"huge extents", true, status, func(s *script, cookie uint64) { s.chunk(cookie, 1, chunkStatus, maxStatusChunk+8) }},
		{"other context", true, status, func(s *script, cookie uint64) {
			s.chunk(cookie, 1, chunkStatus, 12, uint32(8), uint32(4096), uint32(0))
		}},
		{"empty extent", true, status, func(s *script, cookie uint64) { s.chunk(cookie, 1, chunkStatus, 12, uint32(7), uint32(0), uint32(0)) }},
		{"extent behind", true, status, func(s *script, cookie uint64) {
			s.chunk(cookie, 1, chunkStatus, 20, uint32(7), uint32(4096), uint32(0), uint32(512), uint32(1))
		}},
		{"context twice", true, status, func(s *script, cookie uint64) {
			s.chunk(cookie, 0, chunkStatus, 12, uint32(7), uint32(512), uint32(0))
			s.chunk(cookie, 1, chunkStatus, 12, uint32(7), uint32(512), uint32(0))
		}},
		{"two instead of one", true, one, func(s *script, cookie uint64) {
			s.chunk(cookie, 1, chunkStatus, 20, uint32(7), uint32(512), uint32(0), uint32(512), uint32(1))
		}},
		{"one too long", true, one, func(s *script, cookie uint64) {
			s.chunk(cookie, 1, chunkStatus, 12, uint32(7), uint32(8192), uint32(0))
		}},
		{"error without error", true, flush, func(s *script, cookie uint64) { s.chunk(cookie, 1, chunkError, 6, uint32(0), uint16(0)) }},
		{"short error", true, flush, func(s *script, cookie uint64) { s.chunk(cookie, 1, chunkError, 4, uint32(5)) }},
		{"huge error", true, flush, func(s *script, cookie uint64) { s.chunk(cookie, 1, chunkError, 1<<30) }},
		{"long message", true, flush, func(s *script, cookie uint64) { s.chunk(cookie, 1, chunkError, 7, uint32(5), uint16(2), "x") }},
		{"error offset missing", true, read, func(s *script, cookie uint64) { s.chunk(cookie, 1, chunkErrorOffset, 6, uint32(5), uint16(0)) }},
		{"error elsewhere", true, read, func(s *script, cookie uint64) {
			s.chunk(cookie, 1, chunkErrorOffset, 14, uint32(5), uint16(0), uint64(0))
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			client := connect(t, play(t, func(s *script) {
				s.export(test.structured)
				test.reply(s, s.request())
				s.receive(1) // until the client hangs up
			}), test.structured)
			if err := client.Submit(test.command).Wait(bounded(t)); !errors.Is(err, ErrProtocol) {
				t.Fatalf("error is %v", err)
			}
			<-client.Ended()
			if err := client.Flush(bounded(t)); !errors.Is(err, ErrProtocol) {
				t.Fatalf("later error is %v", err)
			}
		})
	}
}

// Errors of requests leave the connection usable, and say what the server said.
func TestReplyErrors(t *testing.T) {
	client := connect(t, play(t, func(s *script) {
		s.export(true)
		s.simple(s.request(), EPERM)
		s.chunk(s.request(), 1, chunkError, 12, uint32(ENOSPC), uint16(6), "put on")
		cookie := s.request()
		s.chunk(cookie, 0, chunkData, 12, uint64(0), "1234")
		s.chunk(cookie, 0, chunkErrorOffset, 16, uint32(EIO), uint16(2), "ow", uint64(4))
		s.chunk(cookie, 1, chunkErrorOffset, 14, uint32(EINVAL), uint16(0), uint64(6))
		s.chunk(s.request(), 1, chunkErrorBit|99, 10, uint32(ENOTSUP), uint16(0), "more")
		s.simple(s.request(), 99)
		s.simple(s.request(), 0)
		s.receive(28)
	}), true)
	ctx := bounded(t)
	var refused *ReplyError
	if err := client.WriteAt(ctx, []byte("x"), 3, FUA); !errors.Is(err, EPERM) || !errors.As(err, &refused) ||
		refused.Command.Offset != 3 || refused.Command.Flags != FUA || refused.Command.Data != nil {
		t.Errorf("write: %v", err)
	}
	if err := client.WriteAt(ctx, []byte("x"), 0, 0); !errors.As(err, &refused) || refused.Message != "put on" {
		t.Errorf("write: %v", err)
	}
	if err := client.ReadAt(ctx, make([]byte, 8), 0); !errors.As(err, &refused) || refused.Errno != EIO || *refused.Offset != 4 {
		t.Errorf("read: %v", err)
	}
	if err := client.Zero(ctx, 0, 4096, FastZero); !errors.Is(err, ENOTSUP) {
		t.Errorf("zero: %v", err)
	}
	if err := client.Trim(ctx, 0, 4096, 0); err == nil || err.Error() != "NBD trim of 4096 bytes at 0: errno 99" {
		t.Errorf("trim: %v", err)
	}
	if err := client.Flush(ctx); err != nil {
		t.Errorf("flush: %v", err)
	}
	if err := client.Disconnect(ctx); err != nil {
		t.Errorf("disconnect: %v", err)
	}
}

// Replies in another order, in pieces and interleaved, find their requests.
func TestInterleavedReplies(t *testing.T) {
	client := connect(t, play(t, func(s *script) {
		s.export(true)
		first, second, third := s.request(), s.request(), s.request()
		s.simple(third, 0)
		s.chunk(second, 0, chunkHole, 12, uint64(104), uint32(4))
		s.chunk(first, 0, chunkData, 11, uint64(3), "def")
		s.chunk(second, 0, chunkData, 12, uint64(100), "wxyz")
		s.chunk(first, 1, chunkData, 11, uint64(0), "abc")
		s.chunk(second, 1, chunkNone, 0)
	}), true)
	ctx := bounded(t)
	first := client.Submit(Command{Type: CmdRead, Length: 6})
	used := bytes.Repeat([]byte{0xff}, 8)
	second := client.Submit(Command{Type: CmdRead, Offset: 100, Data: used})
	third := client.Submit(Command{Type: CmdFlush})
	for _, request := range []*Request{third, first, second} {
		if err := request.Wait(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if string(first.Data()) != "abcdef" || string(used) != "wxyz\x00\x00\x00\x00" {
		t.Errorf("read %q and %q", first.Data(), used)
	}
	<-client.Ended()
	if err := client.Flush(ctx); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("error is %v", err)
	}
}

// The status of a range is asked for until all of it is known, overlong last
// extents are clipped, and neighbours joined.
func TestStatus(t *testing.T) {
	client := connect(t, play(t, func(s *script) {
		s.export(true)
		s.chunk(s.request(), 1, chunkStatus, 20, uint32(7), uint32(1024), uint32(3), uint32(512), uint32(0))
		s.chunk(s.request(), 1, chunkStatus, 12, uint32(7), uint32(512), uint32(0))
		s.chunk(s.request(), 1, chunkStatus, 12, uint32(7), uint32(1<<30), uint32(2))
	}), true)
	got, err := client.Status(bounded(t), 512, 4096)
	want := []Extent{{512, 1024, 3}, {1536, 1024, 0}, {2560, 2048, 2}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("status is %v, %v", got, err)
	}
}

func TestCloseEndsRequests(t *testing.T) {
	received := make(chan struct{})
	client := connect(t, play(t, func(s *script) {
		s.export(true)
		s.request()
		close(received)
		s.receive(1)
	}), true)
	sent := client.Submit(Command{Type: CmdFlush})
	<-received
	stuck := client.Submit(Command{Type: CmdWrite, Data: make([]byte, 1<<20)}) // the script reads one byte of it
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := sent.Wait(ended); !errors.Is(err, context.Canceled) {
		t.Errorf("wait: %v", err)
	}
	if err := client.Disconnect(ended); !errors.Is(err, context.Canceled) {
		t.Errorf("disconnect: %v", err)
	}
	for _, request := range []*Request{sent, stuck, client.Submit(Command{Type: CmdFlush})} {
		if err := request.Wait(bounded(t)); !errors.Is(err, ErrClosed) {
			t.Errorf("error is %v", err)
		}
	}
}

// A server that hangs up on NBD_CMD_DISC without answering what is in flight
// breaks its duty, and Disconnect says so.
func TestDisconnectReportsUnanswered(t *testing.T) {
	client := connect(t, play(t, func(s *script) {
		s.export(true)
		s.request()
		s.receive(28)
	}), true)
	request := client.Submit(Command{Type: CmdFlush})
	if err := client.Disconnect(bounded(t)); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("disconnect: %v", err)
	}
	if err := request.Wait(bounded(t)); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("request: %v", err)
	}
}

func TestSubmitChecksBuffers(t *testing.T) {
	client := connect(t, play(t, func(s *script) { s.export(true); s.receive(1) }), true)
	for _, command := range []Command{
		{Type: CmdRead, Length: 4, Data: make([]byte, 8)},
		{Type: CmdWrite, Length: 4},
		{Type: cmdDisconnect},
	} {
		if err := client.Submit(command).Wait(bounded(t)); err == nil || errors.Is(err, ErrClosed) {
			t.Errorf("%+v: error is %v", command, err)
		}
	}
}

// Span sets against a dumb map of bytes.
func TestSpans(t *testing.T) {
	for _, order := range [][][2]uint64{
		{{0, 4}, {4, 8}, {8, 10}},
		{{8, 10}, {0, 4}, {4, 8}},
		{{4, 6}, {0, 2}, {8, 10}, {5, 7}, {2, 4}, {6, 8}, {0, 10}},
		{{0, 10}, {3, 4}, {0, 1}, {9, 10}},
	} {
		var set spans
		model := map[uint64]bool{}
		for _, piece := range order {
			free := true
			for at := piece[0]; at < piece[1]; at++ {
				free = free && !model[at]
			}
			if got := set.add(piece[0], piece[1]); got != free {
				t.Fatalf("%v: adding %v to %v is %v", order, piece, set, got)
			}
			for at := piece[0]; free && at < piece[1]; at++ {
				model[at] = true
			}
		}
		if got := set.covers(0, 10); got != (len(model) == 10) {
			t.Errorf("%v: %v covers all is %v", order, set, got)
		}
	}
}
