// SPDX-License-Identifier: Apache-2.0

package nbd

import (
	"encoding/binary"
	"errors"
	"fmt"
)

var be = binary.BigEndian

// Sizes of the fixed parts of the handshake in bytes.
const (
	GreetingSize    = 18
	ClientFlagsSize = 4
	OptionSize      = 16 // header of an option
	OptionReplySize = 20 // header of an answer

	// exportNamePadding follows the answer to ExportName unless NoZeroes was agreed on.
	exportNamePadding = 124
)

// AppendGreeting adds what a server says first.
func AppendGreeting(b []byte, flags HandshakeFlags) []byte {
	b = be.AppendUint64(b, GreetingMagic)
	b = be.AppendUint64(b, OptionMagic)
	return be.AppendUint16(b, uint16(flags))
}

// ParseGreeting reads what a server says first.
func ParseGreeting(b []byte) (HandshakeFlags, error) {
	if len(b) < GreetingSize || be.Uint64(b) != GreetingMagic {
		return 0, errors.New("the peer is no NBD server")
	}
	if be.Uint64(b[8:]) != OptionMagic {
		return 0, errors.New("the NBD server speaks only the old protocol")
	}
	return HandshakeFlags(be.Uint16(b[16:])), nil
}

// AppendClientFlags adds a client's answer to the greeting.
func AppendClientFlags(b []byte, flags HandshakeFlags) []byte {
	return be.AppendUint32(b, uint32(flags))
}

// ParseClientFlags reads a client's answer to the greeting, which may only have flags that were offered.
func ParseClientFlags(b []byte, offered HandshakeFlags) (HandshakeFlags, error) {
	if len(b) < ClientFlagsSize {
		return 0, errShort("client flags")
	}
	flags := be.Uint32(b)
	if unknown := flags &^ uint32(offered); unknown != 0 {
		return 0, fmt.Errorf("unknown client flags %#x", unknown)
	}
	return HandshakeFlags(flags), nil
}

// OptionHeader precedes the data of an option.
type OptionHeader struct {
	Option Option
	Length uint32 // bytes of data that follow
}

// Append adds the header.
func (h OptionHeader) Append(b []byte) []byte {
	b = be.AppendUint64(b, OptionMagic)
	b = be.AppendUint32(b, uint32(h.Option))
	return be.AppendUint32(b, h.Length)
}

// ParseOptionHeader reads OptionSize bytes.
func ParseOptionHeader(b []byte) (OptionHeader, error) {
	if len(b) < OptionSize {
		return OptionHeader{}, errShort("option")
	}
	if magic := be.Uint64(b); magic != OptionMagic {
		return OptionHeader{}, fmt.Errorf("bad magic %#x of an option", magic)
	}
	return OptionHeader{Option(be.Uint32(b[8:])), be.Uint32(b[12:])}, nil
}

// OptionReply precedes the data of an answer to an option.
type OptionReply struct {
	Option Option
	Type   ReplyType
	Length uint32 // bytes of data that follow
}

// Append adds the header.
func (r OptionReply) Append(b []byte) []byte {
	b = be.AppendUint64(b, OptionReplyMagic)
	b = be.AppendUint32(b, uint32(r.Option))
	b = be.AppendUint32(b, uint32(r.Type))
	return be.AppendUint32(b, r.Length)
}

// ParseOptionReply reads OptionReplySize bytes.
func ParseOptionReply(b []byte) (OptionReply, error) {
	if len(b) < OptionReplySize {
		return OptionReply{}, errShort("answer to an option")
	}
	if magic := be.Uint64(b); magic != OptionReplyMagic {
		return OptionReply{}, fmt.Errorf("bad magic %#x of an answer to an option", magic)
	}
	return OptionReply{Option(be.Uint32(b[8:])), ReplyType(be.Uint32(b[12:])), be.Uint32(b[16:])}, nil
}

// AppendExportNameReply adds the answer to ExportName, which ends the handshake.
func AppendExportNameReply(b []byte, size uint64, flags TransmissionFlags, noZeroes bool) []byte {
	b = be.AppendUint64(b, size)
	b = be.AppendUint16(b, uint16(flags))
	if !noZeroes {
		b = append(b, make([]byte, exportNamePadding)...)
	}
	return b
}

func errShort(what string) error { return fmt.Errorf("%s is cut short", what) }

// fields reads the parts of a message one after the other. After the first failure all parts are empty.
type fields struct {
	rest []byte
	err  error
}

func (f *fields) bytes(n int) []byte {
	if f.err != nil || n < 0 || n > len(f.rest) {
		if f.err == nil {
			f.err = errShort("the data")
		}
		return nil
	}
	part := f.rest[:n]
	f.rest = f.rest[n:]
	return part
}

func (f *fields) uint16() uint16 {
	if b := f.bytes(2); b != nil {
		return be.Uint16(b)
	}
	return 0
}

func (f *fields) uint32() uint32 {
	if b := f.bytes(4); b != nil {
		return be.Uint32(b)
	}
	return 0
}

func (f *fields) uint64() uint64 {
	if b := f.bytes(8); b != nil {
		return be.Uint64(b)
	}
	return 0
}

// string reads a length and as many bytes.
func (f *fields) string() string {
	n := f.uint32()
	if f.err == nil && n > MaxString {
		f.err = fmt.Errorf("a string of %d bytes, %d is the most", n, MaxString)
	}
	return string(f.bytes(int(n)))
}

// end is the first failure, such as bytes that are left over.
func (f *fields) end() error {
	if f.err == nil && len(f.rest) > 0 {
		f.err = fmt.Errorf("%d bytes too many", len(f.rest))
	}
	return f.err
}

func appendString(b []byte, s string) []byte { return append(be.AppendUint32(b, uint32(len(s))), s...) }
