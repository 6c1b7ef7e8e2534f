// SPDX-License-Identifier: Apache-2.0

package nbdguest

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"net"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func bounded(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// script is the server's side of a conversation.
type script struct {
	t    testing.TB
	conn net.Conn
}

// play runs a script against one end of a pipe and returns the other end.
// The test ends only when the script has.
func play(t testing.TB, lines func(s *script)) net.Conn {
	client, server := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer server.Close()
		lines(&script{t, server})
	}()
	t.Cleanup(func() {
		client.Close()
		<-done
	})
	return client
}

// send writes fields in network order; a client that went away is its own
// affair.
func (s *script) send(fields ...any) {
	var message bytes.Buffer
	for _, field := range fields {
		if text, ok := field.(string); ok {
			field = []byte(text)
		}
		if err := binary.Write(&message, binary.BigEndian, field); err != nil {
			s.t.Errorf("script: %v", err)
		}
	}
	_, _ = s.conn.Write(message.Bytes())
}

func (s *script) receive(size int) []byte {
	buf := make([]byte, size)
	if _, err := io.ReadFull(s.conn, buf); err != nil {
		return make([]byte, size)
	}
	return buf
}

// greet greets and takes the client's flags.
func (s *script) greet(flags uint16) {
	s.send(magicGreeting, magicOption, flags)
	if got := binary.BigEndian.Uint32(s.receive(4)); got != uint32(flags&3) {
		s.t.Errorf("client flags are %#x, offered were %#x", got, flags)
	}
}

// option takes one option and returns its payload.
func (s *script) option(want Option) []byte {
	header := s.receive(16)
	if got := Option(binary.BigEndian.Uint32(header[8:])); got != want {
		s.t.Errorf("option is %v, want %v", got, want)
	}
	return s.receive(int(binary.BigEndian.Uint32(header[12:])))
}

func (s *script) answer(option Option, kind uint32, body ...any) {
	var payload bytes.Buffer
	for _, field := range body {
		if text, ok := field.(string); ok {
			field = []byte(text)
		}
		if err := binary.Write(&payload, binary.BigEndian, field); err != nil {
			s.t.Errorf("script: %v", err)
		}
	}
	s.send(magicOptionReply, uint32(option), kind, uint32(payload.Len()), payload.Bytes())
}

// export is the whole handshake for a 1 MiB export with everything on; the
// metadata context is number 7.
func (s *script) export(structured bool) {
	s.greet(3)
	if structured {
		s.option(OptStructuredReply)
		s.answer(OptStructuredReply, repAck)
		s.option(OptSetMetaContext)
		s.answer(OptSetMetaContext, repMetaContext, uint32(7), BaseAllocation)
		s.answer(OptSetMetaContext, repAck)
	}
	s.option(OptGo)
	s.answer(OptGo, repInfo, uint16(InfoExport), uint64(1<<20), uint16(HasFlags|SendFlush|SendDF))
	s.answer(OptGo, repAck)
}

// request takes one request header (and the data of a write) and returns its
// cookie.
func (s *script) request() uint64 {
	header := s.receive(28)
	if CommandType(binary.BigEndian.Uint16(header[6:])) == CmdWrite {
		s.receive(int(binary.BigEndian.Uint32(header[24:])))
	}
	return binary.BigEndian.Uint64(header[8:])
}

func (s *script) simple(cookie uint64, errno Errno, data ...any) {
	s.send(append([]any{magicSimpleReply, uint32(errno), cookie}, data...)...)
}

func (s *script) chunk(cookie uint64, flags, kind uint16, length int, body ...any) {
	s.send(append([]any{magicStructuredReply, flags, kind, cookie, uint32(length)}, body...)...)
}

// connect does the client's side of script.export.
func connect(t testing.TB, conn net.Conn, structured bool) *Client {
	t.Helper()
	h, err := NewHandshake(bounded(t), conn)
	if err != nil {
		t.Fatal(err)
	}
	client, err := h.negotiate(bounded(t), "disk", Options{SimpleReplies: !structured})
	if err != nil {
		h.Close()
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return client
}
