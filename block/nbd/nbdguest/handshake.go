// SPDX-License-Identifier: Apache-2.0

package nbdguest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// Handshake is a connection before transmission. Its methods send one option
// each and may not be called concurrently. It ends with Go or ExportName,
// which hand the connection on to a Client, or with Abort or Close. After an
// *OptionError it can go on; after any other error only Close makes sense.
type Handshake struct {
	conn       net.Conn
	fixed      bool
	noZeroes   bool
	structured bool
	metaExport string            // the export that contexts belong to
	contexts   map[uint32]string // metadata contexts by the server's numbers
}

// Connect opens a connection ("unix" or "tcp") and reads the greeting.
func Connect(ctx context.Context, network, address string) (*Handshake, error) {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return NewHandshake(ctx, conn)
}

// NewHandshake reads the greeting from a connection that it takes over, and
// closes it if that fails.
func NewHandshake(ctx context.Context, conn net.Conn) (*Handshake, error) {
	h := &Handshake{conn: conn}
	if err := h.bounded(ctx, h.greet); err != nil {
		conn.Close()
		return nil, fmt.Errorf("NBD greeting: %w", err)
	}
	return h, nil
}

// bounded runs blocking I/O that ends with ctx. When ctx ended meanwhile, the
// deadline stays in the past and the connection is of no more use.
func (h *Handshake) bounded(ctx context.Context, talk func() error) error {
	stop := context.AfterFunc(ctx, func() {
		// Fails only on a closed connection, where nothing blocks.
		_ = h.conn.SetDeadline(time.Unix(1, 0))
	})
	err := talk()
	if !stop() {
		return context.Cause(ctx)
	}
	return err
}

// receive fills buf; an end of the stream inside of it is unexpected.
func (h *Handshake) receive(buf []byte) error {
	_, err := io.ReadFull(h.conn, buf)
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return err
}

func (h *Handshake) greet() error {
	var hello [18]byte
	if err := h.receive(hello[:]); err != nil {
		return err
	}
	if magic := binary.BigEndian.Uint64(hello[:]); magic != magicGreeting {
		return violation("greeting magic is %#x", magic)
	}
	if magic := binary.BigEndian.Uint64(hello[8:]); magic != magicOption {
		return violation("not a newstyle server: second magic is %#x", magic)
	}
	flags := binary.BigEndian.Uint16(hello[16:])
	h.fixed = flags&flagFixedNewstyle != 0
	h.noZeroes = flags&flagNoZeroes != 0
	_, err := h.conn.Write(binary.BigEndian.AppendUint32(nil, uint32(flags&(flagFixedNewstyle|flagNoZeroes))))
	return err
}

// sendOption writes one option with its payload.
func (h *Handshake) sendOption(option Option, payload []byte) error {
	message := binary.BigEndian.AppendUint64(nil, magicOption)
	message = binary.BigEndian.AppendUint32(message, uint32(option))
	message = binary.BigEndian.AppendUint32(message, uint32(len(payload)))
	_, err := h.conn.Write(append(message, payload...))
	return err
}

// exchange sends an option and hands every reply before the final one to
// each, which may be nil if there should be none.
func (h *Handshake) exchange(ctx context.Context, option Option, payload []byte, each func(kind uint32, body []byte) error) error {
	if !h.fixed {
		return fmt.Errorf("NBD %v: the server is not a fixed newstyle one, it only takes EXPORT_NAME", option)
	}
	err := h.bounded(ctx, func() error {
		if err := h.sendOption(option, payload); err != nil {
			return err
		}
		for range maxOptionReplies {
			kind, body, err := h.optionReply(option)
			switch {
			case err != nil:
				return err
			case kind == repAck:
				return nil
			case kind&repErrorBit != 0:
				return &OptionError{Option: option, Errno: OptionErrno(kind &^ repErrorBit), Message: string(body)}
			case each == nil:
				return violation("reply of type %d", kind)
			}
			if err := each(kind, body); err != nil {
				return err
			}
		}
		return violation("more than %d replies", maxOptionReplies)
	})
	var refused *OptionError
	if err == nil || errors.As(err, &refused) {
		return err
	}
	return fmt.Errorf("NBD %v: %w", option, err)
}

func (h *Handshake) optionReply(option Option) (kind uint32, body []byte, err error) {
	var header [20]byte
	if err := h.receive(header[:]); err != nil {
		return 0, nil, err
	}
	if magic := binary.BigEndian.Uint64(header[:]); magic != magicOptionReply {
		return 0, nil, violation("option reply magic is %#x", magic)
	}
	if got := Option(binary.BigEndian.Uint32(header[8:])); got != option {
		return 0, nil, violation("the reply is to %v", got)
	}
	kind = binary.BigEndian.Uint32(header[12:])
	length := binary.BigEndian.Uint32(header[16:])
	if length > maxOptionReply {
		return 0, nil, violation("option reply of %d bytes", length)
	}
	if kind == repAck && length != 0 {
		return 0, nil, violation("acknowledgement with %d bytes of data", length)
	}
	body = make([]byte, length)
	return kind, body, h.receive(body)
}

// Abort tells the server that there will be no transmission, and closes the
// connection. A server that closes it without answering is fine too.
func (h *Handshake) Abort(ctx context.Context) error {
	err := h.exchange(ctx, OptAbort, nil, nil)
	h.conn.Close()
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return nil
	}
	return err
}

// Close drops the connection.
func (h *Handshake) Close() error { return h.conn.Close() }
