// SPDX-License-Identifier: Apache-2.0

package nbd

import "fmt"

// Sizes of the fixed parts of the transmission phase in bytes.
const (
	RequestSize     = 28 // compact request
	SimpleReplySize = 16
	ChunkSize       = 20 // header of a chunk of a structured reply
	DataChunkSize   = ChunkSize + 8
	HoleChunkSize   = ChunkSize + HoleSize
	ErrorChunkSize  = ChunkSize + ErrorSize
)

// Request is what a client wants. Length is that of the range, and of the data that follows a write; compact requests
// carry 32 bits of it. With FlagPayloadLen, which is for extended requests only, Length is that of the data that follows.
type Request struct {
	Flags   CommandFlags
	Command Command
	Cookie  uint64
	Offset  uint64
	Length  uint64
}

// Append adds the request in its compact form.
func (r Request) Append(b []byte) []byte {
	b = be.AppendUint32(b, RequestMagic)
	b = be.AppendUint16(b, uint16(r.Flags))
	b = be.AppendUint16(b, uint16(r.Command))
	b = be.AppendUint64(b, r.Cookie)
	b = be.AppendUint64(b, r.Offset)
	return be.AppendUint32(b, uint32(r.Length))
}

// ParseRequest reads RequestSize bytes.
func ParseRequest(b []byte) (Request, error) {
	if len(b) < RequestSize {
		return Request{}, errShort("request")
	}
	if magic := be.Uint32(b); magic != RequestMagic {
		return Request{}, fmt.Errorf("bad magic %#x of a request", magic)
	}
	return Request{
		Flags:   CommandFlags(be.Uint16(b[4:])),
		Command: Command(be.Uint16(b[6:])),
		Cookie:  be.Uint64(b[8:]),
		Offset:  be.Uint64(b[16:]),
		Length:  uint64(be.Uint32(b[24:])),
	}, nil
}

// SimpleReply answers a request. The data of a successful read follows it.
type SimpleReply struct {
	Error  Errno
	Cookie uint64
}

// Append adds the reply.
func (r SimpleReply) Append(b []byte) []byte {
	b = be.AppendUint32(b, SimpleReplyMagic)
	b = be.AppendUint32(b, uint32(r.Error))
	return be.AppendUint64(b, r.Cookie)
}

// Chunk precedes the payload of one part of a structured reply.
type Chunk struct {
	Flags  ChunkFlags
	Type   ChunkType
	Cookie uint64
	Length uint32 // bytes of payload
}

// Append adds the header.
func (c Chunk) Append(b []byte) []byte {
	b = be.AppendUint32(b, StructuredReplyMagic)
	b = be.AppendUint16(b, uint16(c.Flags))
	b = be.AppendUint16(b, uint16(c.Type))
	b = be.AppendUint64(b, c.Cookie)
	return be.AppendUint32(b, c.Length)
}

// ParseSimpleReply reads SimpleReplySize bytes.
func ParseSimpleReply(b []byte) (SimpleReply, error) {
	if len(b) < SimpleReplySize {
		return SimpleReply{}, errShort("reply")
	}
	if magic := be.Uint32(b); magic != SimpleReplyMagic {
		return SimpleReply{}, fmt.Errorf("bad magic %#x of a reply", magic)
	}
	return SimpleReply{Errno(be.Uint32(b[4:])), be.Uint64(b[8:])}, nil
}

// ParseChunk reads ChunkSize bytes.
func ParseChunk(b []byte) (Chunk, error) {
	if len(b) < ChunkSize {
		return Chunk{}, errShort("chunk")
	}
	if magic := be.Uint32(b); magic != StructuredReplyMagic {
		return Chunk{}, fmt.Errorf("bad magic %#x of a chunk", magic)
	}
	return Chunk{ChunkFlags(be.Uint16(b[4:])), ChunkType(be.Uint16(b[6:])), be.Uint64(b[8:]), be.Uint32(b[16:])}, nil
}

// AppendDataChunk adds header and offset of a chunk with length bytes of data, which follow.
func AppendDataChunk(b []byte, flags ChunkFlags, cookie, offset uint64, length uint32) []byte {
	b = Chunk{flags, ChunkOffsetData, cookie, length + 8}.Append(b)
	return be.AppendUint64(b, offset)
}

// Hole is the payload of a chunk of type ChunkOffsetHole: a part of what was read that is all zeroes.
type Hole struct {
	Offset uint64
	Length uint32
}

// HoleSize is the length of a hole in bytes.
const HoleSize = 12

// Append adds the hole.
func (h Hole) Append(b []byte) []byte {
	b = be.AppendUint64(b, h.Offset)
	return be.AppendUint32(b, h.Length)
}

// ParseHole reads the payload of a chunk of type ChunkOffsetHole.
func ParseHole(b []byte) (Hole, error) {
	f := fields{rest: b}
	h := Hole{f.uint64(), f.uint32()}
	return h, f.end()
}

// AppendErrorChunk adds a whole chunk that tells of a failure without more words.
func AppendErrorChunk(b []byte, flags ChunkFlags, cookie uint64, e Errno) []byte {
	return AppendError(Chunk{flags, ChunkError, cookie, ErrorSize}.Append(b), e)
}

// ErrorSize is the length of the payload of an error chunk without words.
const ErrorSize = 6

// AppendError adds the payload of a chunk of type ChunkError without words.
func AppendError(b []byte, e Errno) []byte {
	b = be.AppendUint32(b, uint32(e))
	return be.AppendUint16(b, 0)
}

// ParseErrorChunk reads the payload of a chunk of type ChunkError or ChunkErrorOffset.
func ParseErrorChunk(b []byte) (e Errno, message string, err error) {
	f := fields{rest: b}
	e = Errno(f.uint32())
	message = string(f.bytes(int(f.uint16())))
	if f.err == nil && e == 0 {
		f.err = fmt.Errorf("an error chunk without an error")
	}
	return e, message, f.err
}

// Descriptor is one extent of a block status reply.
type Descriptor struct {
	Length uint32 // bytes
	Flags  uint32
}

// DescriptorSize is the length of a descriptor in bytes.
const DescriptorSize = 8

// Append adds the descriptor.
func (d Descriptor) Append(b []byte) []byte {
	b = be.AppendUint32(b, d.Length)
	return be.AppendUint32(b, d.Flags)
}

// ParseDescriptor reads DescriptorSize bytes.
func ParseDescriptor(b []byte) (Descriptor, error) {
	if len(b) < DescriptorSize {
		return Descriptor{}, errShort("descriptor")
	}
	return Descriptor{be.Uint32(b), be.Uint32(b[4:])}, nil
}
