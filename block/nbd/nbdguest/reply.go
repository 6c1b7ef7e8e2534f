// SPDX-License-Identifier: Apache-2.0

package nbdguest

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
)

// readReply takes in one message. It returns io.EOF only between messages.
func (c *Client) readReply(stream *bufio.Reader) error {
	var magic [4]byte
	if _, err := io.ReadFull(stream, magic[:]); err != nil {
		return err
	}
	var err error
	switch got := binary.BigEndian.Uint32(magic[:]); got {
	case magicSimpleReply:
		err = c.readSimple(stream)
	case magicStructuredReply:
		err = c.readChunk(stream)
	default:
		return violation("reply magic is %#x", got)
	}
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// lookUp finds the request that a reply belongs to.
func (c *Client) lookUp(cookie uint64) (*Request, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.mu.inFlight[cookie]
	if r == nil || r.replied {
		return nil, violation("reply to request %d, which is not in flight", cookie)
	}
	return r, nil
}

func (c *Client) readSimple(stream *bufio.Reader) error {
	var header [12]byte
	if _, err := io.ReadFull(stream, header[:]); err != nil {
		return err
	}
	r, err := c.lookUp(binary.BigEndian.Uint64(header[4:]))
	if err != nil {
		return err
	}
	errno := Errno(binary.BigEndian.Uint32(header[:]))
	if c.info.Structured && r.command.Type == CmdRead {
		return violation("simple reply to a read although replies are structured")
	}
	if errno == 0 {
		if r.command.Type == CmdBlockStatus {
			return violation("simple reply to a block status request")
		}
		if r.command.Type == CmdRead {
			if _, err := io.ReadFull(stream, r.command.Data); err != nil {
				return err
			}
		}
	} else {
		r.refuse(errno, "", nil)
	}
	c.settle(r, func() { r.replied = true })
	return nil
}

func (c *Client) readChunk(stream *bufio.Reader) error {
	var header [16]byte
	if _, err := io.ReadFull(stream, header[:]); err != nil {
		return err
	}
	if !c.info.Structured {
		return violation("structured reply although none was agreed on")
	}
	flags := binary.BigEndian.Uint16(header[:])
	kind := binary.BigEndian.Uint16(header[2:])
	length := binary.BigEndian.Uint32(header[12:])
	r, err := c.lookUp(binary.BigEndian.Uint64(header[4:]))
	if err != nil {
		return err
	}
	switch {
	case kind == chunkNone:
		if length != 0 || flags&chunkDone == 0 {
			return violation("empty chunk with %d bytes and flags %#x", length, flags)
		}
	case kind == chunkData && r.command.Type == CmdRead:
		err = r.takeData(stream, length)
	case kind == chunkHole && r.command.Type == CmdRead:
		err = r.takeHole(stream, length)
	case kind == chunkStatus && r.command.Type == CmdBlockStatus:
		err = r.takeStatus(stream, length)
	case kind&chunkErrorBit != 0:
		err = r.takeError(stream, kind, length)
	default:
		return violation("chunk of type %d in the reply to a %s", kind, r.command.Type)
	}
	if err != nil || flags&chunkDone == 0 {
		return err
	}
	if err := r.check(); err != nil {
		return err
	}
	c.settle(r, func() { r.replied = true })
	return nil
}

// refuse notes an error of the server; the first one counts.
func (r *Request) refuse(errno Errno, message string, offset *uint64) {
	if r.err != nil {
		return
	}
	command := r.command
	command.Data = nil
	r.err = &ReplyError{Command: command, Errno: errno, Message: message, Offset: offset}
}

// claim notes that content for a range of a read arrived.
func (r *Request) claim(offset, length uint64) error {
	from, to := r.command.Offset, r.command.Offset+uint64(r.command.Length)
	if length == 0 || offset < from || offset > to || length > to-offset {
		return violation("content for %d bytes at %d in the reply to a read of %d bytes at %d",
			length, offset, r.command.Length, from)
	}
	if r.command.Flags&DF != 0 && len(r.covered) > 0 {
		return violation("second chunk in the reply to a read that must not be fragmented")
	}
	if !r.covered.add(offset, offset+length) {
		return violation("content for %d bytes at %d overlaps an earlier chunk", length, offset)
	}
	return nil
}

func (r *Request) takeData(stream *bufio.Reader, length uint32) error {
	var offset [8]byte
	if length <= 8 {
		return violation("data chunk of %d bytes", length)
	}
	if _, err := io.ReadFull(stream, offset[:]); err != nil {
		return err
	}
	start, size := binary.BigEndian.Uint64(offset[:]), uint64(length-8)
	if err := r.claim(start, size); err != nil {
		return err
	}
	at := start - r.command.Offset
	_, err := io.ReadFull(stream, r.command.Data[at:at+size])
	return err
}

func (r *Request) takeHole(stream *bufio.Reader, length uint32) error {
	var body [12]byte
	if length != 12 {
		return violation("hole chunk of %d bytes", length)
	}
	if r.command.Flags&DF != 0 {
		return violation("hole chunk in the reply to a read that must not be fragmented")
	}
	if _, err := io.ReadFull(stream, body[:]); err != nil {
		return err
	}
	start, size := binary.BigEndian.Uint64(body[:]), uint64(binary.BigEndian.Uint32(body[8:]))
	if err := r.claim(start, size); err != nil {
		return err
	}
	at := start - r.command.Offset
	clear(r.command.Data[at : at+size])
	return nil
}

func (r *Request) takeStatus(stream *bufio.Reader, length uint32) error {
	if length < 12 || (length-4)%8 != 0 || length > maxStatusChunk {
		return violation("block status chunk of %d bytes", length)
	}
	body := make([]byte, length)
	if _, err := io.ReadFull(stream, body); err != nil {
		return err
	}
	id := binary.BigEndian.Uint32(body)
	if _, known := r.names[id]; !known {
		return violation("block status of context %d, which was not selected", id)
	}
	if _, again := r.extents[id]; again {
		return violation("block status of context %d twice in one reply", id)
	}
	extents, err := r.parseExtents(body[4:])
	if err != nil {
		return err
	}
	if r.extents == nil {
		r.extents = map[uint32][]Extent{}
	}
	r.extents[id] = extents
	return nil
}

// parseExtents turns descriptors into extents. The last one may reach beyond
// the range asked for, unless one single extent was asked for.
func (r *Request) parseExtents(body []byte) ([]Extent, error) {
	extents := make([]Extent, 0, len(body)/8)
	one := r.command.Flags&ReqOne != 0
	if one && len(body) > 8 {
		return nil, violation("%d extents where one was asked for", len(body)/8)
	}
	left := uint64(r.command.Length)
	for at := r.command.Offset; len(body) > 0; body = body[8:] {
		size := uint64(binary.BigEndian.Uint32(body))
		if size == 0 || left == 0 && len(extents) > 0 || one && size > left {
			return nil, violation("extent of %d bytes with %d bytes left to describe", size, left)
		}
		size = min(size, left)
		extents = append(extents, Extent{Offset: at, Length: size, Flags: binary.BigEndian.Uint32(body[4:])})
		at, left = at+size, left-size
	}
	return extents, nil
}

func (r *Request) takeError(stream *bufio.Reader, kind uint16, length uint32) error {
	if length < 6 || length > maxErrorChunk {
		return violation("error chunk of %d bytes", length)
	}
	body := make([]byte, length)
	if _, err := io.ReadFull(stream, body); err != nil {
		return err
	}
	errno := Errno(binary.BigEndian.Uint32(body))
	size, rest := int(binary.BigEndian.Uint16(body[4:])), body[6:]
	if errno == 0 || size > len(rest) {
		return violation("error chunk with error %d and a message of %d bytes in %d", errno, size, len(rest))
	}
	message, rest := string(rest[:size]), rest[size:]
	switch kind {
	case chunkError:
		r.refuse(errno, message, nil)
	case chunkErrorOffset:
		if len(rest) != 8 {
			return violation("error chunk with an offset of %d bytes", len(rest))
		}
		offset := binary.BigEndian.Uint64(rest)
		if offset-r.command.Offset > uint64(r.command.Length) {
			return violation("error at %d in the reply to a %s of %d bytes at %d",
				offset, r.command.Type, r.command.Length, r.command.Offset)
		}
		r.refuse(errno, message, &offset)
	default:
		r.refuse(errno, message, nil)
	}
	return nil
}

// check tells whether a structured reply said all it had to say.
func (r *Request) check() error {
	if r.err != nil {
		return nil
	}
	switch r.command.Type {
	case CmdRead:
		if !r.covered.covers(r.command.Offset, r.command.Offset+uint64(r.command.Length)) {
			return violation("successful read of %d bytes at %d without content for all of it",
				r.command.Length, r.command.Offset)
		}
	case CmdBlockStatus:
		if len(r.extents) != len(r.names) || len(r.extents) == 0 {
			return violation("block status of %d contexts, %d are selected", len(r.extents), len(r.names))
		}
	}
	return nil
}
