// SPDX-License-Identifier: Apache-2.0

package nbd

import (
	"bytes"
	"reflect"
	"strings"
	"syscall"
	"testing"

	"github.com/blkmirror/blkmirror/block"
)

// TestRoundTrip encodes messages, compares the bytes with those of the specification, and decodes them.
func TestRoundTrip(t *testing.T) {
	for _, test := range []struct {
		message interface{ Append([]byte) []byte }
		bytes   string
		parse   func([]byte) (any, error)
	}{
		{OptionHeader{OptGo, 5}, "IHAVEOPT\x00\x00\x00\x07\x00\x00\x00\x05", func(b []byte) (any, error) { return ParseOptionHeader(b) }},
		{OptionReply{OptList, RepErrUnknown, 1}, "\x00\x03\xe8\x89\x04\x55\x65\xa9\x00\x00\x00\x03\x80\x00\x00\x06\x00\x00\x00\x01",
			func(b []byte) (any, error) { return ParseOptionReply(b) }},
		{ExportQuery{"ab", []InfoType{InfoBlockSize}}, "\x00\x00\x00\x02ab\x00\x01\x00\x03", func(b []byte) (any, error) { return ParseExportQuery(b) }},
		{MetaQuery{"a", []string{"b:", "c"}}, "\x00\x00\x00\x01a\x00\x00\x00\x02\x00\x00\x00\x02b:\x00\x00\x00\x01c",
			func(b []byte) (any, error) { return ParseMetaQuery(b) }},
		{MetaContext{1, "x"}, "\x00\x00\x00\x01x", func(b []byte) (any, error) { return ParseMetaContext(b) }},
		{ServerEntry{"a", "bc"}, "\x00\x00\x00\x01abc", func(b []byte) (any, error) { return ParseServerEntry(b) }},
		{Request{FlagFUA, CmdTrim, 3, 4, 5}, "\x25\x60\x95\x13\x00\x01\x00\x04\x00\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00\x00\x00\x00\x00\x04\x00\x00\x00\x05",
			func(b []byte) (any, error) { return ParseRequest(b) }},
		{SimpleReply{EINVAL, 9}, "\x67\x44\x66\x98\x00\x00\x00\x16\x00\x00\x00\x00\x00\x00\x00\x09", func(b []byte) (any, error) { return ParseSimpleReply(b) }},
		{Chunk{ChunkDone, ChunkError, 2, 6}, "\x66\x8e\x33\xef\x00\x01\x80\x01\x00\x00\x00\x00\x00\x00\x00\x02\x00\x00\x00\x06",
			func(b []byte) (any, error) { return ParseChunk(b) }},
		{Request{FlagPayloadLen, CmdBlockStatus, 3, 4, 1 << 32}, "\x21\xe4\x1c\x71\x00\x20\x00\x07\x00\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00\x00\x00\x00\x00\x04\x00\x00\x00\x01\x00\x00\x00\x00",
			func(b []byte) (any, error) { return ParseExtendedRequest(b) }},
		{ExtendedChunk{ChunkDone, ChunkBlockStatusExt, 2, 7, 24}, "\x6e\x8a\x27\x8c\x00\x01\x00\x06\x00\x00\x00\x00\x00\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00\x07\x00\x00\x00\x00\x00\x00\x00\x18",
			func(b []byte) (any, error) { return ParseExtendedChunk(b) }},
		{ExtendedDescriptor{1 << 40, 1}, "\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01", func(b []byte) (any, error) { return ParseExtendedDescriptor(b) }},
		{StatusQuery{1 << 40, []uint32{1, 2}}, "\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x02", func(b []byte) (any, error) { return ParseStatusQuery(b) }},
		{Hole{1 << 40, 512}, "\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x02\x00", func(b []byte) (any, error) { return ParseHole(b) }},
		{Descriptor{512, StateHole | StateZero}, "\x00\x00\x02\x00\x00\x00\x00\x03", func(b []byte) (any, error) { return ParseDescriptor(b) }},
	} {
		b := test.message.Append([]byte("x"))[1:]
		if r, ok := test.message.(Request); ok && r.Flags == FlagPayloadLen {
			b = r.AppendExtended(nil)
		}
		if string(b) != test.bytes {
			t.Errorf("%+v is %q, want %q", test.message, b, test.bytes)
		}
		if got, err := test.parse(b); err != nil || !reflect.DeepEqual(got, test.message) {
			t.Errorf("%q is read as %+v, %v", b, got, err)
		}
		for n := range b {
			if got, err := test.parse(b[:n]); err == nil && reflect.DeepEqual(got, test.message) {
				t.Errorf("%q is enough for %+v", b[:n], got)
			}
		}
	}
}

func TestInfo(t *testing.T) {
	sizes := BlockSizes{1, 4096, MaxPayload}
	for _, test := range []struct {
		bytes []byte
		want  Info
	}{
		{ExportInfo{1 << 40, HasFlags | SendTrim}.Append(nil), Info{Type: InfoExport, Export: ExportInfo{1 << 40, HasFlags | SendTrim}}},
		{sizes.Append(nil), Info{Type: InfoBlockSize, BlockSizes: sizes}},
		{BlockSizes{512, 512, 1<<32 - 1}.Append(nil), Info{Type: InfoBlockSize, BlockSizes: BlockSizes{512, 512, 1<<32 - 1}}},
		{AppendTextInfo(nil, InfoDescription, "words"), Info{Type: InfoDescription, Text: "words"}},
		{[]byte("\x12\x34rubbish"), Info{Type: 0x1234}},
	} {
		if got, err := ParseInfo(test.bytes); err != nil || got != test.want {
			t.Errorf("%q is read as %+v, %v", test.bytes, got, err)
		}
	}
	for _, bad := range [][]byte{
		nil, {0}, ExportInfo{}.Append(nil)[:11], append(ExportInfo{}.Append(nil), 0),
		BlockSizes{3, 4096, 1 << 20}.Append(nil), BlockSizes{0, 4096, 1 << 20}.Append(nil), BlockSizes{512, 256, 1 << 20}.Append(nil),
		BlockSizes{512, 512, 100}.Append(nil), BlockSizes{512, 512, 1000}.Append(nil),
		AppendTextInfo(nil, InfoName, strings.Repeat("x", MaxString+1)),
	} {
		if info, err := ParseInfo(bad); err == nil {
			t.Errorf("%.40q is read as %+v", bad, info)
		}
	}
}

func TestGreeting(t *testing.T) {
	b := AppendGreeting(nil, FixedNewstyle|NoZeroes)
	if string(b) != "NBDMAGICIHAVEOPT\x00\x03" {
		t.Errorf("greeting is %q", b)
	}
	if flags, err := ParseGreeting(b); err != nil || flags != FixedNewstyle|NoZeroes {
		t.Errorf("flags are %v, %v", flags, err)
	}
	for _, bad := range []string{"", "NBDMAGIC", "NBDMAGIC\x00\x00\x42\x02\x81\x86\x12\x53\x00\x00", "SSH-2.0-OpenSSH_9.2 "} {
		if _, err := ParseGreeting([]byte(bad)); err == nil {
			t.Errorf("%q is a greeting", bad)
		}
	}
	if _, err := ParseClientFlags(AppendClientFlags(nil, 4), FixedNewstyle|NoZeroes); err == nil {
		t.Error("unknown client flags are taken")
	}
}

func TestErrno(t *testing.T) {
	for kind := block.KindIO; kind <= block.KindShutdown; kind++ {
		e := ErrnoOf(&block.Error{Kind: kind})
		if e == 0 || errnoNames[e] == "" {
			t.Errorf("%v is %v", kind, e)
		}
	}
	for err, want := range map[error]Errno{nil: 0, syscall.EDQUOT: ENOSPC, syscall.EFBIG: ENOSPC, syscall.ENXIO: EIO, block.NotSupported: ENOTSUP} {
		if got := ErrnoOf(err); got != want {
			t.Errorf("%v is %v, want %v", err, got, want)
		}
	}
	// What a server says means the same to a client.
	for e, want := range map[Errno]block.Kind{EPERM: block.KindPermission, EIO: block.KindIO, ENOMEM: block.KindNoMemory, EINVAL: block.KindInvalid,
		ENOSPC: block.KindNoSpace, EOVERFLOW: block.KindInvalid, ENOTSUP: block.KindNotSupported, ESHUTDOWN: block.KindShutdown, 4711: block.KindIO} {
		if got := e.Kind(); got != want {
			t.Errorf("%v means %v, want %v", e, got, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(MetaQuery{"a", []string{"b:", "c"}}.Append(nil))
	f.Add(ExportQuery{"ab", []InfoType{InfoBlockSize}}.Append(nil))
	f.Add(BlockSizes{1, 4096, MaxPayload}.Append(nil))
	f.Add(AppendErrorChunk(nil, ChunkDone, 1, EIO)[ChunkSize:])
	f.Add(StatusQuery{1 << 40, []uint32{1, 2}}.Append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		if q, err := ParseStatusQuery(b); err == nil && !bytes.Equal(q.Append(nil), b) {
			t.Errorf("%q is read as %+v", b, q)
		}
		if q, err := ParseMetaQuery(b); err == nil && !bytes.Equal(q.Append(nil), b) {
			t.Errorf("%q is read as %+v", b, q)
		}
		if q, err := ParseExportQuery(b); err == nil && !bytes.Equal(q.Append(nil), b) {
			t.Errorf("%q is read as %+v", b, q)
		}
		_, _ = ParseInfo(b)
		_, _ = ParseMetaContext(b)
		_, _ = ParseServerEntry(b)
		_, _, _ = ParseErrorChunk(b)
		_, _ = ParseRequest(b)
		_, _ = ParseChunk(b)
		_, _ = ParseExtendedRequest(b)
		_, _ = ParseExtendedChunk(b)
		_, _ = ParseHole(b)
	})
}
