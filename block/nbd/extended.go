// SPDX-License-Identifier: Apache-2.0

package nbd

import (
	"errors"
	"fmt"
)

// With extended headers, requests and replies have 64-bit lengths, and all replies are chunks with headers of this form:
//
//	C: request = magic flags command cookie offset length  (data, if the flags have PAYLOAD_LEN)
//	S: chunk   = magic flags type cookie offset length payload
//
// The offset in a chunk is that of the request, whatever the payload is about.

// Sizes of the parts of messages with extended headers in bytes.
const (
	ExtendedRequestSize    = 32
	ExtendedChunkSize      = 32
	ExtendedDescriptorSize = 16
	ExtendedStatusSize     = 8 // before the descriptors of a chunk of type ChunkBlockStatusExt
	StatusSize             = 4 // before the descriptors of a chunk of type ChunkBlockStatus
)

// AppendExtended adds the request in its extended form.
func (r Request) AppendExtended(b []byte) []byte {
	b = be.AppendUint32(b, ExtendedRequestMagic)
	b = be.AppendUint16(b, uint16(r.Flags))
	b = be.AppendUint16(b, uint16(r.Command))
	b = be.AppendUint64(b, r.Cookie)
	b = be.AppendUint64(b, r.Offset)
	return be.AppendUint64(b, r.Length)
}

// ParseExtendedRequest reads ExtendedRequestSize bytes.
func ParseExtendedRequest(b []byte) (Request, error) {
	if len(b) < ExtendedRequestSize {
		return Request{}, errShort("request")
	}
	if magic := be.Uint32(b); magic != ExtendedRequestMagic {
		return Request{}, fmt.Errorf("bad magic %#x of an extended request", magic)
	}
	return Request{
		Flags:   CommandFlags(be.Uint16(b[4:])),
		Command: Command(be.Uint16(b[6:])),
		Cookie:  be.Uint64(b[8:]),
		Offset:  be.Uint64(b[16:]),
		Length:  be.Uint64(b[24:]),
	}, nil
}

// ExtendedChunk precedes the payload of one part of a reply.
type ExtendedChunk struct {
	Flags  ChunkFlags
	Type   ChunkType
	Cookie uint64
	Offset uint64 // of the request
	Length uint64 // bytes of payload
}

// Append adds the header.
func (c ExtendedChunk) Append(b []byte) []byte {
	b = be.AppendUint32(b, ExtendedReplyMagic)
	b = be.AppendUint16(b, uint16(c.Flags))
	b = be.AppendUint16(b, uint16(c.Type))
	b = be.AppendUint64(b, c.Cookie)
	b = be.AppendUint64(b, c.Offset)
	return be.AppendUint64(b, c.Length)
}

// ParseExtendedChunk reads ExtendedChunkSize bytes.
func ParseExtendedChunk(b []byte) (ExtendedChunk, error) {
	if len(b) < ExtendedChunkSize {
		return ExtendedChunk{}, errShort("chunk")
	}
	if magic := be.Uint32(b); magic != ExtendedReplyMagic {
		return ExtendedChunk{}, fmt.Errorf("bad magic %#x of an extended reply", magic)
	}
	return ExtendedChunk{ChunkFlags(be.Uint16(b[4:])), ChunkType(be.Uint16(b[6:])), be.Uint64(b[8:]), be.Uint64(b[16:]),
		be.Uint64(b[24:])}, nil
}

// ExtendedDescriptor is one extent of a chunk of type ChunkBlockStatusExt.
type ExtendedDescriptor struct {
	Length uint64 // bytes
	Flags  uint64
}

// Append adds the descriptor.
func (d ExtendedDescriptor) Append(b []byte) []byte {
	b = be.AppendUint64(b, d.Length)
	return be.AppendUint64(b, d.Flags)
}

// ParseExtendedDescriptor reads ExtendedDescriptorSize bytes.
func ParseExtendedDescriptor(b []byte) (ExtendedDescriptor, error) {
	if len(b) < ExtendedDescriptorSize {
		return ExtendedDescriptor{}, errShort("descriptor")
	}
	return ExtendedDescriptor{be.Uint64(b), be.Uint64(b[8:])}, nil
}

// StatusQuery is the payload of a block status request that wants some of the selected contexts only.
type StatusQuery struct {
	Length uint64   // of the range that is asked about, in bytes
	IDs    []uint32 // of the contexts
}

// Append adds the payload.
func (q StatusQuery) Append(b []byte) []byte {
	b = be.AppendUint64(b, q.Length)
	for _, id := range q.IDs {
		b = be.AppendUint32(b, id)
	}
	return b
}

// ParseStatusQuery reads the payload of a block status request.
func ParseStatusQuery(b []byte) (StatusQuery, error) {
	f := fields{rest: b}
	q := StatusQuery{Length: f.uint64()}
	for f.err == nil && len(f.rest) > 0 {
		if id := f.uint32(); f.err == nil {
			q.IDs = append(q.IDs, id)
		}
	}
	if f.err == nil && len(q.IDs) == 0 {
		f.err = errors.New("a question for block status without a context")
	}
	return q, f.err
}
