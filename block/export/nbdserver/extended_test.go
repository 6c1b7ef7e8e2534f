// SPDX-License-Identifier: Apache-2.0

package nbdserver

import (
	"bytes"
	"context"
	"encoding/binary"
	"net"
	"slices"
	"testing"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/blocktest"
	"github.com/blkmirror/blkmirror/block/nbd"
)

// extendedTransmission enters transmission with extended headers and the metadata contexts that match.
func (h *house) extendedTransmission(name string, queries ...string) (conn net.Conn, contexts []nbd.MetaContext, flags nbd.TransmissionFlags) {
	h.t.Helper()
	conn = h.greeted(nbd.FixedNewstyle | nbd.NoZeroes)
	h.option(conn, nbd.OptExtendedHeaders, nil)
	_, bodies := h.option(conn, nbd.OptSetMetaContext, nbd.MetaQuery{Name: name, Queries: queries}.Append(nil))
	for _, b := range bodies[:len(bodies)-1] {
		c, err := nbd.ParseMetaContext(b)
		h.must(err)
		contexts = append(contexts, c)
	}
	_, bodies = h.option(conn, nbd.OptGo, nbd.ExportQuery{Name: name}.Append(nil))
	info, err := nbd.ParseInfo(bodies[0])
	h.must(err)
	return conn, contexts, info.Export.Flags
}

// ask sends one extended request, and returns the chunks of the reply.
func (h *house) ask(conn net.Conn, r nbd.Request, payload []byte) (chunks []nbd.ExtendedChunk, payloads [][]byte) {
	h.t.Helper()
	r.Cookie = 77
	h.send(conn, append(r.AppendExtended(nil), payload...))
	for {
		c, err := nbd.ParseExtendedChunk(h.receive(conn, nbd.ExtendedChunkSize))
		h.must(err)
		if c.Cookie != r.Cookie || c.Offset != r.Offset {
			h.t.Fatalf("chunk %+v belongs to another request than %+v", c, r)
		}
		chunks, payloads = append(chunks, c), append(payloads, h.receive(conn, int(c.Length)))
		if c.Flags&nbd.ChunkDone != 0 {
			return chunks, payloads
		}
	}
}

// errno is how an extended request without a reply's data ended.
func (h *house) errno(conn net.Conn, r nbd.Request, payload []byte) nbd.Errno {
	h.t.Helper()
	chunks, payloads := h.ask(conn, r, payload)
	if len(chunks) != 1 {
		h.t.Fatalf("%d chunks", len(chunks))
	}
	if chunks[0].Type.IsError() {
		e, _, err := nbd.ParseErrorChunk(payloads[0])
		h.must(err)
		return e
	}
	return 0
}

// extents are those of a chunk with extended block status.
func (h *house) extents(payload []byte) (id uint32, list []nbd.ExtendedDescriptor) {
	h.t.Helper()
	id = binary.BigEndian.Uint32(payload)
	count := binary.BigEndian.Uint32(payload[4:])
	for p := payload[nbd.ExtendedStatusSize:]; len(p) > 0; p = p[nbd.ExtendedDescriptorSize:] {
		d, err := nbd.ParseExtendedDescriptor(p)
		h.must(err)
		list = append(list, d)
	}
	if int(count) != len(list) {
		h.t.Errorf("%d extents are announced, %d came", count, len(list))
	}
	return id, list
}

const (
	huge = 1 << 40
	far  = 1 << 39
)

// vast is a disk that has data in one place only.
type vast struct{ data [8192]byte }

func (v *vast) Size() int64                 { return huge }
func (v *vast) Flush(context.Context) error { return nil }
func (v *vast) Close() error                { return nil }

func (v *vast) ReadAt(_ context.Context, p []byte, off int64) error {
	clear(p)
	if off <= far && far < off+int64(len(p)) {
		copy(p[far-off:], v.data[:])
	}
	return nil
}

func (v *vast) WriteAt(_ context.Context, p []byte, off int64, _ block.Flags) error {
	if off == far {
		copy(v.data[:], p)
	}
	return nil
}

func (v *vast) WriteZeroes(context.Context, int64, int64, block.Flags) error { return nil }
func (v *vast) Discard(context.Context, int64, int64) error                  { return nil }

func (v *vast) BlockStatus(_ context.Context, off, n int64) (block.Extent, error) {
	switch end := int64(far + len(v.data)); {
	case off < far:
		return block.Extent{Len: min(n, far-off), Status: block.StatusZero}, nil
	case off < end:
		return block.Extent{Len: min(n, end-off), Status: block.StatusData}, nil
	}
	return block.Extent{Len: n, Status: block.StatusZero}, nil
}

func TestExtendedHeaders(t *testing.T) {
	h := newHouse(t, Options{})
	h.node = blocktest.NewNode(t, h.graph, "vast", &vast{}, block.Options{Discard: true})
	h.export("d")
	conn, contexts, flags := h.extendedTransmission("d", nbd.BaseAllocation)
	if want := nbd.SendDF | nbd.BlockStatusPayload; flags&want != want {
		t.Errorf("flags are %#x", flags)
	}
	data := bytes.Repeat([]byte{5}, 8192)
	const withData = nbd.FlagPayloadLen
	for _, test := range []struct {
		name    string
		request nbd.Request
		payload []byte
		want    nbd.Errno
	}{
		{"write", nbd.Request{Flags: withData | nbd.FlagFUA, Command: nbd.CmdWrite, Offset: far, Length: 8192}, data, 0},
		{"write without its flag, as QEMU does it", nbd.Request{Command: nbd.CmdWrite, Offset: far, Length: 8192}, data, 0},
		{"write of nothing", nbd.Request{Flags: withData, Command: nbd.CmdWrite}, nil, 0},
		{"write beyond", nbd.Request{Flags: withData, Command: nbd.CmdWrite, Offset: huge - 1, Length: 8192}, data, nbd.ENOSPC},
		{"flush", nbd.Request{Command: nbd.CmdFlush}, nil, 0},
		{"flush with data", nbd.Request{Flags: withData, Command: nbd.CmdFlush, Length: 8192}, data, nbd.EINVAL},
		{"unknown with data", nbd.Request{Flags: withData, Command: 4711, Length: 8192}, data, nbd.EINVAL},
		{"long zeroes", nbd.Request{Command: nbd.CmdWriteZeroes, Length: 1 << 38}, nil, 0},
		{"zeroes beyond", nbd.Request{Command: nbd.CmdWriteZeroes, Offset: 1 << 63, Length: 1 << 63}, nil, nbd.ENOSPC},
		{"long trim", nbd.Request{Command: nbd.CmdTrim, Length: 1 << 38}, nil, 0},
		{"long cache", nbd.Request{Command: nbd.CmdCache, Length: huge}, nil, 0},
		{"long read", nbd.Request{Command: nbd.CmdRead, Length: nbd.MaxPayload + 1}, nil, nbd.EINVAL},
		{"endless read", nbd.Request{Command: nbd.CmdRead, Length: 1<<64 - 1}, nil, nbd.EINVAL},
		{"read of nothing", nbd.Request{Command: nbd.CmdRead, Offset: 5}, nil, 0},
		{"status of nothing", nbd.Request{Command: nbd.CmdBlockStatus}, nil, nbd.EINVAL},
		{"status with empty payload", nbd.Request{Flags: withData, Command: nbd.CmdBlockStatus}, nil, nbd.EINVAL},
		{"status with no context", nbd.Request{Flags: withData, Command: nbd.CmdBlockStatus, Length: 8}, make([]byte, 8), nbd.EINVAL},
		{"status with half a context", nbd.Request{Flags: withData, Command: nbd.CmdBlockStatus, Length: 11}, make([]byte, 11), nbd.EINVAL},
		{"status with two contexts", nbd.Request{Flags: withData, Command: nbd.CmdBlockStatus, Length: 16},
			nbd.StatusQuery{Length: 512, IDs: []uint32{contexts[0].ID, contexts[0].ID}}.Append(nil), nbd.EINVAL},
		{"status of an unknown context", nbd.Request{Flags: withData, Command: nbd.CmdBlockStatus, Length: 12},
			nbd.StatusQuery{Length: 512, IDs: []uint32{4711}}.Append(nil), nbd.EINVAL},
		{"status beyond", nbd.Request{Flags: withData, Command: nbd.CmdBlockStatus, Length: 12, Offset: huge},
			nbd.StatusQuery{Length: 512, IDs: []uint32{contexts[0].ID}}.Append(nil), nbd.EINVAL},
	} {
		if got := h.errno(conn, test.request, test.payload); got != test.want {
			t.Errorf("%s: %v, want %v", test.name, got, test.want)
		}
	}
	chunks, payloads := h.ask(conn, nbd.Request{Command: nbd.CmdRead, Offset: far - 1, Length: 100}, nil)
	if want := append([]byte{0}, data[:99]...); len(chunks) != 1 || chunks[0].Type != nbd.ChunkOffsetData || !bytes.Equal(payloads[0][8:], want) {
		t.Errorf("a read is answered with %+v", chunks)
	}
	hole := uint64(nbd.StateHole | nbd.StateZero)
	want := []nbd.ExtendedDescriptor{{Length: far, Flags: hole}, {Length: 8192}, {Length: far - 8192, Flags: hole}}
	for _, query := range [][]byte{nil, nbd.StatusQuery{Length: huge, IDs: []uint32{contexts[0].ID}}.Append(nil)} {
		r := nbd.Request{Command: nbd.CmdBlockStatus, Length: huge}
		if query != nil {
			r.Flags, r.Length = withData, uint64(len(query))
		}
		chunks, payloads := h.ask(conn, r, query)
		id, got := h.extents(payloads[0])
		if len(chunks) != 1 || chunks[0].Type != nbd.ChunkBlockStatusExt || id != contexts[0].ID || !slices.Equal(got, want) {
			t.Errorf("%+v with extents %+v of context %d, want %+v", chunks, got, id, want)
		}
	}
	_, payloads = h.ask(conn, nbd.Request{Flags: nbd.FlagReqOne, Command: nbd.CmdBlockStatus, Length: huge}, nil)
	if _, got := h.extents(payloads[0]); !slices.Equal(got, want[:1]) {
		t.Errorf("one extent is %+v", got)
	}
	h.send(conn, nbd.Request{Command: nbd.CmdDisconnect}.AppendExtended(nil))
	h.receiveEnd(conn)
	h.must(wait(h, h.closed, "the end"))
	// What breaks the connection.
	for name, b := range map[string][]byte{
		"compact request": append(nbd.Request{Command: nbd.CmdFlush}.Append(nil), 0, 0, 0, 0),
		"endless data":    nbd.Request{Flags: withData, Command: nbd.CmdRead, Length: 1<<64 - 1}.AppendExtended(nil),
	} {
		conn, _, _ := h.extendedTransmission("d")
		h.send(conn, b)
		h.receiveEnd(conn)
		if err := wait(h, h.closed, "the end"); err == nil {
			t.Errorf("%s: the connection ended without a reason", name)
		}
	}
}

func TestExtendedOptions(t *testing.T) {
	h := newHouse(t, Options{})
	h.export("d")
	conn := h.greeted(nbd.FixedNewstyle)
	for _, step := range []struct {
		option nbd.Option
		data   []byte
		want   nbd.ReplyType
	}{
		{nbd.OptStructuredReply, nil, nbd.RepAck},
		{nbd.OptExtendedHeaders, []byte{1}, nbd.RepErrInvalid},
		{nbd.OptExtendedHeaders, nil, nbd.RepAck},
		{nbd.OptExtendedHeaders, nil, nbd.RepAck},
		{nbd.OptStructuredReply, nil, nbd.RepErrExtendedOnly},
		{nbd.OptSetMetaContext, nbd.MetaQuery{Name: "d"}.Append(nil), nbd.RepAck},
	} {
		answers, _ := h.option(conn, step.option, step.data)
		if got := answers[len(answers)-1].Type; got != step.want {
			t.Errorf("option %d with %q: %#x, want %#x", step.option, step.data, got, step.want)
		}
	}
	h.send(conn, append(nbd.OptionHeader{Option: nbd.OptExportName, Length: 1}.Append(nil), 'd'))
	h.receiveEnd(conn)
	h.wantErr(wait(h, h.closed, "the end"), "extended headers")
}

// TestSparseRead wants the holes of long reads told and not sent, unless the client wants one piece.
func TestSparseRead(t *testing.T) {
	h := newHouse(t, Options{})
	h.export("d")
	h.must(h.node.WriteAt(t.Context(), bytes.Repeat([]byte{1}, 4096), 256<<10, 0))
	h.must(h.node.WriteAt(t.Context(), bytes.Repeat([]byte{2}, 4096), 300<<10, 0)) // the hole before is too short to tell
	conn, _, _ := h.extendedTransmission("d")
	type piece struct {
		kind   nbd.ChunkType
		off, n uint64
	}
	const data, hole = nbd.ChunkOffsetData, nbd.ChunkOffsetHole
	for _, test := range []struct {
		flags  nbd.CommandFlags
		off, n uint64
		want   []piece
	}{
		{0, 1, 255 << 10, []piece{{hole, 1, 255 << 10}}},
		{nbd.FlagDF, 1, 255 << 10, []piece{{data, 1, 255 << 10}}},
		{0, 0, 4096, []piece{{data, 0, 4096}}},
		{0, 128 << 10, 384 << 10, []piece{{hole, 128 << 10, 128 << 10}, {data, 256 << 10, 48 << 10}, {hole, 304 << 10, 208 << 10}}},
		{0, 256 << 10, 64 << 10, []piece{{data, 256 << 10, 64 << 10}}},
	} {
		var got []piece
		chunks, payloads := h.ask(conn, nbd.Request{Flags: test.flags, Command: nbd.CmdRead, Offset: test.off, Length: test.n}, nil)
		for i, c := range chunks {
			off := binary.BigEndian.Uint64(payloads[i])
			p := piece{c.Type, off, c.Length - 8}
			if c.Type == hole {
				parsed, err := nbd.ParseHole(payloads[i])
				h.must(err)
				p.n = uint64(parsed.Length)
			} else if want := h.disk.Bytes()[off : off+p.n]; !bytes.Equal(payloads[i][8:], want) {
				t.Errorf("%+v differs from the disk", p)
			}
			got = append(got, p)
		}
		if !slices.Equal(got, test.want) {
			t.Errorf("%d bytes at %d: %+v, want %+v", test.n, test.off, got, test.want)
		}
	}
}

// TestContexts wants everything that an export offers told side by side.
func TestContexts(t *testing.T) {
	h := newHouse(t, Options{})
	var bitmaps []*block.DirtyBitmap
	add := func(name string, disabled bool) {
		blocktest.Change(t, h.graph, func(tx *block.Tx) error {
			b, err := tx.AddBitmap(h.node, block.BitmapConfig{Name: name, Granularity: 64 << 10, Disabled: disabled})
			bitmaps = append(bitmaps, b)
			return err
		})
	}
	add("b0", false)
	add("b1", true)
	config := Config{ID: "e", Name: "d", Node: h.node, Bitmaps: bitmaps, AllocationDepth: true}
	h.wantErr(h.server.AddExport(t.Context(), config), "Enabled bitmap 'b0' incompatible with readonly export")
	if bitmaps[0].Info().Busy {
		t.Error("a bitmap is busy without an export")
	}
	config.Writable = true
	h.must(h.server.AddExport(t.Context(), config))
	other := config
	other.ID, other.Name = "f", "f"
	h.wantErr(h.server.AddExport(t.Context(), other), "Bitmap 'b0' is currently in use")
	if !bitmaps[0].Info().Busy || !bitmaps[1].Info().Busy {
		t.Error("the bitmaps of an export are not busy")
	}

	names := func(list bool, queries ...string) (names []string) {
		conn := h.greeted(nbd.FixedNewstyle)
		defer conn.Close()
		h.option(conn, nbd.OptStructuredReply, nil)
		option := nbd.OptSetMetaContext
		if list {
			option = nbd.OptListMetaContext
		}
		_, bodies := h.option(conn, option, nbd.MetaQuery{Name: "d", Queries: queries}.Append(nil))
		for _, b := range bodies[:len(bodies)-1] {
			c, err := nbd.ParseMetaContext(b)
			h.must(err)
			names = append(names, c.Name)
		}
		return names
	}
	base, depth, b0, b1 := "base:allocation", "qemu:allocation-depth", "qemu:dirty-bitmap:b0", "qemu:dirty-bitmap:b1"
	for _, test := range []struct {
		list    bool
		queries []string
		want    []string
	}{
		{true, nil, []string{base, depth, b0, b1}},
		{true, []string{"base:"}, []string{base}},
		{true, []string{"qemu:"}, []string{depth, b0, b1}},
		{true, []string{"qemu:dirty-bitmap:"}, []string{b0, b1}},
		{true, []string{"qemu:dirty-bitmap", "qemu", "base", ":", "x:"}, nil},
		{true, []string{b1, b1, base}, []string{base, b1}},
		{false, nil, nil},
		{false, []string{"qemu:", "base:", "qemu:dirty-bitmap:", ""}, nil},
		{false, []string{b1, "other:", depth}, []string{depth, b1}},
	} {
		if got := names(test.list, test.queries...); !slices.Equal(got, test.want) {
			t.Errorf("list %v of %q: %q, want %q", test.list, test.queries, got, test.want)
		}
	}

	conn, contexts, _ := h.extendedTransmission("d", b1, b0, depth, base)
	h.must(h.node.WriteAt(t.Context(), bytes.Repeat([]byte{1}, 4096), 1<<20, 0))
	hole := uint64(nbd.StateHole | nbd.StateZero)
	want := map[string][]nbd.ExtendedDescriptor{
		base: {{Length: 1 << 20, Flags: hole}, {Length: 4096}, {Length: 3<<20 - 4096, Flags: hole}},
		b0:   {{Length: 1 << 20}, {Length: 64 << 10, Flags: 1}, {Length: 3<<20 - 64<<10}}, b1: {{Length: 4 << 20}},
		depth: {{Length: 4 << 20, Flags: 1}},
	}
	_, payloads := h.ask(conn, nbd.Request{Command: nbd.CmdBlockStatus, Length: diskSize}, nil)
	if len(payloads) != 4 {
		t.Errorf("%d contexts in a reply", len(payloads))
	}
	for _, payload := range payloads {
		id, got := h.extents(payload)
		name := contexts[slices.IndexFunc(contexts, func(c nbd.MetaContext) bool { return c.ID == id })].Name
		if !slices.Equal(got, want[name]) {
			t.Errorf("%s: %+v, want %+v", name, got, want[name])
		}
	}
	// The client may want some of them only.
	query := nbd.StatusQuery{Length: 4096, IDs: []uint32{contexts[3].ID}}.Append(nil)
	_, payloads = h.ask(conn, nbd.Request{Flags: nbd.FlagPayloadLen, Command: nbd.CmdBlockStatus, Offset: 1 << 20, Length: uint64(len(query))}, query)
	if id, got := h.extents(payloads[0]); len(payloads) != 1 || id != contexts[3].ID || !slices.Equal(got, []nbd.ExtendedDescriptor{{Length: 4096}}) {
		t.Errorf("context %d: %+v", id, got)
	}
	h.must(h.exports.Remove(h.bounded(), "e", true))
	if bitmaps[0].Info().Busy || bitmaps[1].Info().Busy {
		t.Error("bitmaps are busy after their export")
	}
}

func FuzzExtended(f *testing.F) {
	query := nbd.StatusQuery{Length: 4096, IDs: []uint32{1}}.Append(nil)
	f.Add(append(nbd.Request{Command: nbd.CmdBlockStatus, Flags: nbd.FlagPayloadLen, Length: uint64(len(query))}.AppendExtended(nil), query...))
	f.Add(nbd.Request{Command: nbd.CmdBlockStatus, Length: 1 << 40}.AppendExtended(nil))
	f.Add(nbd.Request{Command: nbd.CmdRead, Length: 1 << 20}.AppendExtended(nil))
	f.Add(append(nbd.Request{Command: nbd.CmdWrite, Flags: nbd.FlagPayloadLen, Length: 3}.AppendExtended(nil), "abc"...))
	option := func(b []byte, o nbd.Option, data []byte) []byte {
		return append(nbd.OptionHeader{Option: o, Length: uint32(len(data))}.Append(b), data...)
	}
	b := nbd.AppendClientFlags(nil, nbd.FixedNewstyle)
	b = option(b, nbd.OptExtendedHeaders, nil)
	b = option(b, nbd.OptSetMetaContext, nbd.MetaQuery{Name: "d", Queries: []string{nbd.BaseAllocation}}.Append(nil))
	fuzz(f, option(b, nbd.OptGo, nbd.ExportQuery{Name: "d"}.Append(nil)))
}
