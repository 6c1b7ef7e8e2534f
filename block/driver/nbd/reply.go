// SPDX-License-Identifier: Apache-2.0

package nbd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	wire "github.com/blkmirror/blkmirror/block/nbd"
)

const (
	// maxErrorChunk is the longest chunk that tells of a failure, with its message.
	maxErrorChunk = 4 + 2 + wire.MaxString + 8
	// maxStatusChunk is the longest chunk of extents that a server may send, maxExtents what is kept of them.
	maxStatusChunk = 64 << 20
	maxExtents     = 1 << 11

	dataOffset = 8 // bytes before the data of a chunk of type ChunkOffsetData
)

// errShutdown ends a session: a server that is about to end refuses all requests, which may go to the one after it (NBD protocol,
// "Error values").
var errShutdown = errors.New("the server is shutting down")

// chunk is the header of a part of a reply, whatever form it came in.
type chunk struct {
	flags  wire.ChunkFlags
	kind   wire.ChunkType
	length uint64
}

// readReplies reads until the connection ends, and says why it did.
func (c *conn) readReplies() error {
	for {
		if err := c.in.fill(4); err == io.EOF {
			return errors.New("the server closed the connection")
		} else if err != nil {
			return err
		}
		b := c.in.pool.B[c.in.r:c.in.w]
		var err error
		switch magic := binary.BigEndian.Uint32(b); {
		case magic == wire.SimpleReplyMagic && !c.export.extended:
			err = c.simpleReply()
		case magic == wire.StructuredReplyMagic && c.export.structured && !c.export.extended:
			err = c.compactChunk()
		case magic == wire.ExtendedReplyMagic && c.export.extended:
			err = c.extendedChunk()
		default:
			err = fmt.Errorf("a reply with the magic %#x", magic)
		}
		if err != nil {
			return noEOF(err)
		}
	}
}

func (c *conn) simpleReply() error {
	b, err := c.in.next(wire.SimpleReplySize)
	if err != nil {
		return err
	}
	reply, err := wire.ParseSimpleReply(b)
	if err != nil {
		return err
	}
	r, err := c.find(reply.Cookie)
	if err != nil {
		return err
	}
	switch {
	case len(r.cover) > 0 || len(r.extents) > 0 || r.failure != nil:
		return fmt.Errorf("a simple reply in the middle of another to %s", r)
	case reply.Error == wire.ESHUTDOWN:
		return errShutdown
	case reply.Error != 0:
		r.failure = serverError(reply.Error, "")
	case r.command == wire.CmdBlockStatus, r.command == wire.CmdRead && c.export.structured:
		return fmt.Errorf("a simple reply to %s", r)
	case r.command == wire.CmdRead:
		if err := c.in.receive(r, 0, r.n); err != nil {
			return err
		}
	}
	c.replied(r)
	return nil
}

func (c *conn) compactChunk() error {
	b, err := c.in.next(wire.ChunkSize)
	if err != nil {
		return err
	}
	h, err := wire.ParseChunk(b)
	if err != nil {
		return err
	}
	r, err := c.find(h.Cookie)
	if err != nil {
		return err
	}
	return c.chunk(r, chunk{h.Flags, h.Type, uint64(h.Length)})
}

func (c *conn) extendedChunk() error {
	b, err := c.in.next(wire.ExtendedChunkSize)
	if err != nil {
		return err
	}
	h, err := wire.ParseExtendedChunk(b)
	if err != nil {
		return err
	}
	r, err := c.find(h.Cookie)
	if err != nil {
		return err
	}
	return c.chunk(r, chunk{h.Flags, h.Type, h.Length})
}

// chunk takes the payload of a part of a reply, and ends the reply with the last part.
func (c *conn) chunk(r *request, h chunk) error {
	var err error
	switch {
	case h.kind.IsError():
		err = c.failed(r, h)
	case h.kind == wire.ChunkNone:
		if h.length != 0 || h.flags&wire.ChunkDone == 0 {
			err = fmt.Errorf("an empty part with %d bytes in the reply to %s", h.length, r)
		}
	case h.kind == wire.ChunkOffsetData:
		err = c.data(r, h)
	case h.kind == wire.ChunkOffsetHole:
		err = c.hole(r, h)
	case h.kind == wire.ChunkBlockStatus && !c.export.extended, h.kind == wire.ChunkBlockStatusExt && c.export.extended:
		err = c.status(r, h)
	default:
		err = fmt.Errorf("a part of type %d in the reply to %s", h.kind, r)
	}
	if err != nil || h.flags&wire.ChunkDone == 0 {
		return err
	}
	if err := r.complete(); err != nil {
		return err
	}
	c.replied(r)
	return nil
}

func (c *conn) failed(r *request, h chunk) error {
	if h.length > maxErrorChunk {
		return fmt.Errorf("an error of %d bytes in the reply to %s", h.length, r)
	}
	b, err := c.in.next(int(h.length))
	if err != nil {
		return err
	}
	errno, message, err := wire.ParseErrorChunk(b)
	if err != nil {
		return err
	}
	if errno == wire.ESHUTDOWN {
		return errShutdown
	}
	if r.failure == nil {
		r.failure = serverError(errno, message)
	}
	return nil
}

func (c *conn) data(r *request, h chunk) error {
	if h.length <= dataOffset || h.length > dataOffset+uint64(r.n) {
		return fmt.Errorf("data of %d bytes in the reply to %s", h.length, r)
	}
	b, err := c.in.next(dataOffset)
	if err != nil {
		return err
	}
	n := int64(h.length) - dataOffset
	at, err := r.fill(binary.BigEndian.Uint64(b), n)
	if err != nil {
		return err
	}
	return c.in.receive(r, at, n)
}

func (c *conn) hole(r *request, h chunk) error {
	if h.length != wire.HoleSize {
		return fmt.Errorf("a hole of %d bytes in the reply to %s", h.length, r)
	}
	b, err := c.in.next(wire.HoleSize)
	if err != nil {
		return err
	}
	hole, err := wire.ParseHole(b)
	if err != nil {
		return err
	}
	at, err := r.fill(hole.Offset, int64(hole.Length))
	if err != nil {
		return err
	}
	c.in.zero(r, at, int64(hole.Length))
	return nil
}

// status takes extents, as many as are worth keeping.
func (c *conn) status(r *request, h chunk) error {
	head, size := wire.StatusSize, wire.DescriptorSize
	if c.export.extended {
		head, size = wire.ExtendedStatusSize, wire.ExtendedDescriptorSize
	}
	if r.command != wire.CmdBlockStatus || len(r.extents) > 0 || h.length < uint64(head+size) || h.length > maxStatusChunk ||
		(h.length-uint64(head))%uint64(size) != 0 {
		return fmt.Errorf("extents in %d bytes in the reply to %s", h.length, r)
	}
	b, err := c.in.next(head)
	if err != nil {
		return err
	}
	if id := binary.BigEndian.Uint32(b); id != c.export.context {
		return fmt.Errorf("extents of context %d in the reply to %s", id, r)
	}
	count := (h.length - uint64(head)) / uint64(size)
	left := r.n
	for i := range count {
		if i == maxExtents || left == 0 {
			return c.in.discard(int64(count-i) * int64(size))
		}
		if b, err = c.in.next(size); err != nil {
			return err
		}
		var length, flags uint64
		if c.export.extended {
			d, _ := wire.ParseExtendedDescriptor(b) // long enough
			length, flags = d.Length, d.Flags
		} else {
			d, _ := wire.ParseDescriptor(b)
			length, flags = uint64(d.Length), uint64(d.Flags)
		}
		if length == 0 {
			return fmt.Errorf("an extent without length in the reply to %s", r)
		}
		n := int64(min(length, uint64(left))) // the last one may reach beyond what was asked
		r.extents = append(r.extents, extent{n, c.session.disk.statusOf(flags)})
		left -= n
	}
	return nil
}
