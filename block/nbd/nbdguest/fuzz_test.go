// SPDX-License-Identifier: Apache-2.0

package nbdguest

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"testing"
)

// oneSided is a server that says a fixed thing, takes everything, and then
// hangs up.
func oneSided(t testing.TB, words []byte) net.Conn {
	return play(t, func(s *script) {
		done := make(chan struct{})
		go func() {
			defer close(done)
			_, _ = io.Copy(io.Discard, s.conn)
		}()
		_, _ = s.conn.Write(words)
		s.conn.Close()
		<-done
	})
}

func join(fields ...any) []byte {
	var message bytes.Buffer
	for _, field := range fields {
		if text, ok := field.(string); ok {
			field = []byte(text)
		}
		if err := binary.Write(&message, binary.BigEndian, field); err != nil {
			panic(err)
		}
	}
	return message.Bytes()
}

// FuzzHandshake has a server say anything during the handshake.
func FuzzHandshake(f *testing.F) {
	hello := join(magicGreeting, magicOption, uint16(3))
	ack := func(option Option) []byte { return join(magicOptionReply, uint32(option), repAck, uint32(0)) }
	f.Add(hello)
	f.Add(join(hello, ack(OptStructuredReply), magicOptionReply, uint32(OptSetMetaContext), repMetaContext,
		uint32(4+len(BaseAllocation)), uint32(1), BaseAllocation, ack(OptSetMetaContext),
		magicOptionReply, uint32(OptGo), repInfo, uint32(12), uint16(0), uint64(4096), uint16(1), ack(OptGo)))
	f.Add(join(hello, magicOptionReply, uint32(OptStructuredReply), repErrorBit|1, uint32(2), "no"))
	f.Fuzz(func(t *testing.T, words []byte) {
		ctx := bounded(t)
		h, err := NewHandshake(ctx, oneSided(t, words))
		if err != nil {
			return
		}
		client, err := h.negotiate(ctx, "disk", Options{})
		if err != nil {
			h.Close()
			return
		}
		client.Close()
	})
}

// FuzzReplies has a server say anything to a read, a block status and a flush
// request.
func FuzzReplies(f *testing.F) {
	f.Add(true, join(magicStructuredReply, uint16(1), chunkData, uint64(1), uint32(16), uint64(0), uint64(0)))
	f.Add(true, join(magicStructuredReply, uint16(0), chunkHole, uint64(1), uint32(12), uint64(0), uint32(8),
		magicStructuredReply, uint16(1), chunkNone, uint64(1), uint32(0)))
	f.Add(true, join(magicStructuredReply, uint16(1), chunkStatus, uint64(2), uint32(12), uint32(7), uint32(512), uint32(3)))
	f.Add(true, join(magicStructuredReply, uint16(1), chunkError, uint64(3), uint32(8), uint32(5), uint16(2), "no"))
	f.Add(false, join(magicSimpleReply, uint32(0), uint64(1), uint64(0), magicSimpleReply, uint32(5), uint64(3)))
	f.Fuzz(func(t *testing.T, structured bool, words []byte) {
		h := &Handshake{conn: oneSided(t, words), metaExport: "disk", contexts: map[uint32]string{7: BaseAllocation}}
		client := h.transmit("disk", Info{Structured: structured})
		defer client.Close()
		for _, command := range []Command{
			{Type: CmdRead, Length: 8}, {Type: CmdBlockStatus, Length: 4096}, {Type: CmdFlush},
		} {
			request := client.Submit(command)
			<-request.Done()
		}
	})
}
