// SPDX-License-Identifier: Apache-2.0

package nbdserver

import (
	"bytes"
	"errors"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/blkmirror/blkmirror/block/nbd"
	"github.com/blkmirror/blkmirror/block/nbd/nbdguest"
)

// option sends one option and returns its answers, the last of which is an acknowledgement or an error.
func (h *house) option(conn net.Conn, o nbd.Option, data []byte) (answers []nbd.OptionReply, bodies [][]byte) {
	h.t.Helper()
	h.send(conn, append(nbd.OptionHeader{Option: o, Length: uint32(len(data))}.Append(nil), data...))
	for {
		r, err := nbd.ParseOptionReply(h.receive(conn, nbd.OptionReplySize))
		h.must(err)
		if r.Option != o {
			h.t.Fatalf("the answer is to option %d, not %d", r.Option, o)
		}
		answers, bodies = append(answers, r), append(bodies, h.receive(conn, int(r.Length)))
		if r.Type == nbd.RepAck || r.Type.IsError() {
			return answers, bodies
		}
	}
}

// greeted connects, and answers the greeting.
func (h *house) greeted(flags nbd.HandshakeFlags) net.Conn {
	h.t.Helper()
	conn := h.raw()
	got, err := nbd.ParseGreeting(h.receive(conn, nbd.GreetingSize))
	h.must(err)
	if got != nbd.FixedNewstyle|nbd.NoZeroes {
		h.t.Errorf("handshake flags are %v", got)
	}
	h.send(conn, nbd.AppendClientFlags(nil, flags))
	return conn
}

func TestOptions(t *testing.T) {
	h := newHouse(t, Options{MaxConnections: 100})
	h.must(h.server.AddExport(t.Context(), Config{ID: "e", Node: h.node, Description: "a disk", Writable: true}))
	h.must(h.server.AddExport(t.Context(), Config{ID: "b", Name: "a b", Node: h.node}))
	query := func(name string, queries ...string) []byte {
		return nbd.MetaQuery{Name: name, Queries: queries}.Append(nil)
	}
	export := func(name string) []byte { return nbd.ExportQuery{Name: name}.Append(nil) }
	conn := h.greeted(nbd.FixedNewstyle)
	for _, step := range []struct {
		option nbd.Option
		data   []byte
		want   []nbd.ReplyType
	}{
		{nbd.OptList, nil, []nbd.ReplyType{nbd.RepServer, nbd.RepServer, nbd.RepAck}},
		{nbd.OptList, []byte("x"), []nbd.ReplyType{nbd.RepErrInvalid}},
		{nbd.OptStartTLS, nil, []nbd.ReplyType{nbd.RepErrPolicy}},

		{4711, []byte("rubbish"), []nbd.ReplyType{nbd.RepErrUnsupported}},
		{4711, make([]byte, maxOption), []nbd.ReplyType{nbd.RepErrUnsupported}},
		{nbd.OptGo, make([]byte, maxOption+1), []nbd.ReplyType{nbd.RepErrTooBig}},
		{nbd.OptSetMetaContext, query("d", nbd.BaseAllocation), []nbd.ReplyType{nbd.RepErrInvalid}}, // no structured replies
		{nbd.OptStructuredReply, []byte{0}, []nbd.ReplyType{nbd.RepErrInvalid}},
		{nbd.OptStructuredReply, nil, []nbd.ReplyType{nbd.RepAck}},
		{nbd.OptListMetaContext, query("d"), []nbd.ReplyType{nbd.RepMetaContext, nbd.RepAck}},
		{nbd.OptListMetaContext, query("d", "base:"), []nbd.ReplyType{nbd.RepMetaContext, nbd.RepAck}},
		{nbd.OptListMetaContext, query("d", "base:other", "x-y:z"), []nbd.ReplyType{nbd.RepAck}},
		{nbd.OptListMetaContext, query("none"), []nbd.ReplyType{nbd.RepErrUnknown}},
		{nbd.OptSetMetaContext, query("d"), []nbd.ReplyType{nbd.RepAck}},
		{nbd.OptSetMetaContext, query("d", nbd.BaseAllocation, nbd.BaseAllocation), []nbd.ReplyType{nbd.RepMetaContext, nbd.RepAck}},
		{nbd.OptSetMetaContext, query("d", "base:allocation")[:9], []nbd.ReplyType{nbd.RepErrInvalid}},
		{nbd.OptInfo, export("none"), []nbd.ReplyType{nbd.RepErrUnknown}},
		{nbd.OptInfo, export("d")[:5], []nbd.ReplyType{nbd.RepErrInvalid}},
		{nbd.OptInfo, append(export("d"), 0), []nbd.ReplyType{nbd.RepErrInvalid}},
		{nbd.OptInfo, export("d"), []nbd.ReplyType{nbd.RepInfo, nbd.RepInfo, nbd.RepAck}},
		{nbd.OptGo, export("D"), []nbd.ReplyType{nbd.RepErrUnknown}},
		{nbd.OptGo, export("a b"), []nbd.ReplyType{nbd.RepInfo, nbd.RepInfo, nbd.RepAck}},
	} {
		answers, bodies := h.option(conn, step.option, step.data)
		var got []nbd.ReplyType
		for _, a := range answers {
			got = append(got, a.Type)
		}
		if !slices.Equal(got, step.want) {
			t.Errorf("option %d with %d bytes: %v, want %v", step.option, len(step.data), got, step.want)
		}
		if len(answers) == 3 && answers[0].Type == nbd.RepServer {
			first, err := nbd.ParseServerEntry(bodies[0])
			h.must(err)
			second, err := nbd.ParseServerEntry(bodies[1])
			h.must(err)
			if first.Name != "a b" || second != (nbd.ServerEntry{Name: "d", Description: "a disk"}) {
				t.Errorf("list is %+v, %+v", first, second)
			}
		}
	}
	h.send(conn, nbd.Request{Command: nbd.CmdDisconnect}.Append(nil))
	h.receiveEnd(conn)
	h.must(wait(h, h.closed, "the end"))
}

func TestFlagsAndSizes(t *testing.T) {
	const common = nbd.HasFlags | nbd.SendFlush | nbd.SendFUA | nbd.SendCache
	writable := common | nbd.SendTrim | nbd.SendWriteZeroes | nbd.SendFastZero
	for _, test := range []struct {
		most                 int
		writable, structured bool
		want                 nbd.TransmissionFlags
	}{
		{100, true, true, writable | nbd.SendDF | nbd.CanMultiConn},
		{0, true, true, writable | nbd.SendDF | nbd.CanMultiConn},
		{1, true, true, writable | nbd.SendDF},
		{100, true, false, writable | nbd.CanMultiConn},
		{1, false, true, common | nbd.ReadOnly | nbd.SendDF | nbd.CanMultiConn},
	} {
		h := newHouse(t, Options{MaxConnections: test.most})
		h.must(h.server.AddExport(t.Context(), Config{ID: "e", Name: "d", Description: "words", Node: h.node, Writable: test.writable}))
		c, err := nbdguest.Dial(h.bounded(), "unix", h.path, "d", nbdguest.Options{SimpleReplies: !test.structured,
			Infos: []nbdguest.InfoType{nbdguest.InfoName, nbdguest.InfoDescription, nbdguest.InfoBlockSize}})
		h.must(err)
		info := c.Info()
		if uint16(info.Flags) != uint16(test.want) {
			t.Errorf("%+v: flags are %#x, want %#x", test, info.Flags, test.want)
		}
		if info.Size != diskSize || info.Name != "d" || info.Description != "words" ||
			info.BlockSize != (nbdguest.BlockSizes{Minimum: 1, Preferred: 4096, Maximum: 32 << 20}) {
			t.Errorf("info is %+v", info)
		}
		h.must(c.Disconnect(h.bounded()))
	}
}

func TestOldExportName(t *testing.T) {
	h := newHouse(t, Options{})
	h.export("d")
	for _, flags := range []nbd.HandshakeFlags{0, nbd.FixedNewstyle, nbd.NoZeroes} {
		conn := h.greeted(flags)
		h.send(conn, append(nbd.OptionHeader{Option: nbd.OptExportName, Length: 1}.Append(nil), 'd'))
		h.receive(conn, 10)
		if flags&nbd.NoZeroes == 0 && !bytes.Equal(h.receive(conn, 124), make([]byte, 124)) {
			t.Error("no zeroes")
		}
		h.send(conn, nbd.Request{Command: nbd.CmdFlush, Cookie: 5}.Append(nil))
		if r := h.reply(conn); r != (nbd.SimpleReply{Cookie: 5}) {
			t.Errorf("reply is %+v", r)
		}
		_ = conn.Close()
		h.must(wait(h, h.closed, "the end"))
	}
}

// TestBadHandshakes wants every one of these to end its connection, with a reason, and nothing else.
func TestBadHandshakes(t *testing.T) {
	h := newHouse(t, Options{})
	h.export("d")
	bystander := h.dial("d")
	fixed := nbd.AppendClientFlags(nil, nbd.FixedNewstyle)
	option := func(o nbd.Option, length uint32) []byte {
		return nbd.OptionHeader{Option: o, Length: length}.Append(slices.Clone(fixed))
	}
	for name, bytes := range map[string][]byte{
		"unknown client flag":    nbd.AppendClientFlags(nil, 1<<7),
		"HTTP":                   []byte("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"),
		"bad magic":              append(slices.Clone(fixed), "IWANTOPT00000000"...),
		"huge option":            option(nbd.OptInfo, 1<<32-1),
		"huge name":              option(nbd.OptExportName, maxOption+1),
		"unknown export":         append(option(nbd.OptExportName, 4), "none"...),
		"option without fixed":   nbd.OptionHeader{Option: nbd.OptList}.Append(nbd.AppendClientFlags(nil, 0)),
		"bad magic of a request": append(hello("d"), strings.Repeat("x", 28)...),
		"endless write":          nbd.Request{Command: nbd.CmdWrite, Length: 1<<32 - 1}.Append(hello("d")),
	} {
		t.Run(name, func(t *testing.T) {
			conn := h.raw()
			h.send(conn, bytes)
			h.receiveEnd(conn)
			if err := wait(h, h.closed, "the end"); err == nil {
				t.Error("the connection ended without a reason")
			}
		})
	}
	for name, bytes := range map[string][]byte{
		"half of the flags": fixed[:2],
		"half an option":    option(nbd.OptList, 0)[:10],
		"half of the data":  append(option(nbd.OptGo, 10), 1, 2, 3),
		"half of big data":  option(nbd.OptGo, maxOption+1),
		"half a request":    append(hello("d"), 0x25, 0x60),
		"half a write":      append(nbd.Request{Command: nbd.CmdWrite, Length: 512}.Append(hello("d")), 1, 2),
		"half a bad write":  append(nbd.Request{Command: nbd.CmdWrite, Flags: 1 << 9, Length: 512}.Append(hello("d")), 1, 2),
	} {
		t.Run(name, func(t *testing.T) {
			conn := h.raw()
			h.send(conn, bytes)
			h.must(conn.(*net.UnixConn).CloseWrite())
			h.receiveEnd(conn)
			if err := wait(h, h.closed, "the end"); err == nil {
				t.Error("the connection ended without a reason")
			}
		})
	}
	for name, bytes := range map[string][]byte{"nothing": nil, "flags": fixed, "abort": option(nbd.OptAbort, 0)} {
		t.Run(name, func(t *testing.T) {
			conn := h.raw()
			h.send(conn, bytes)
			h.must(conn.(*net.UnixConn).CloseWrite())
			h.receiveEnd(conn)
			h.must(wait(h, h.closed, "the end"))
		})
	}
	h.must(bystander.Flush(h.bounded()))
}

func TestHandshakeTimeout(t *testing.T) {
	h := newHouse(t, Options{HandshakeTimeout: 50 * time.Millisecond})
	h.export("d")
	slow, done := h.raw(), h.dial("d")
	h.receiveEnd(slow)
	h.wantErr(wait(h, h.closed, "the end"), "timeout")
	h.must(done.Flush(h.bounded())) // whoever is through has all the time in the world
}

func TestMetaContextOfAnotherExport(t *testing.T) {
	h := newHouse(t, Options{})
	h.export("d")
	h.export("e")
	s, err := nbdguest.Connect(h.bounded(), "unix", h.path)
	h.must(err)
	h.must(s.StructuredReplies(h.bounded()))
	_, err = s.SetMetaContext(h.bounded(), "e", nbd.BaseAllocation)
	h.must(err)
	c, err := s.Go(h.bounded(), "d")
	h.must(err)
	defer c.Close()
	err = c.Submit(nbdguest.Command{Type: nbdguest.CmdBlockStatus, Length: 4096}).Wait(h.bounded())
	if !errors.Is(err, nbdguest.EINVAL) {
		t.Errorf("block status without a context: %v", err)
	}
}
