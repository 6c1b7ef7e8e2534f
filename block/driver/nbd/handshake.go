// SPDX-License-Identifier: Apache-2.0

package nbd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"time"

	"github.com/blkmirror/blkmirror/block"
	wire "github.com/blkmirror/blkmirror/block/nbd"
)

const (
	// What a server may make us read: bytes of one answer to an option, and answers to one option.
	maxAnswer  = 64 << 10
	maxAnswers = 1 << 10

	maxMinimum = 64 << 10 // the largest smallest request that the protocol allows, bytes

	exportNamePadding = 124 // zeroes behind the answer to ExportName, unless agreed otherwise
)

// export is what the server said in the handshake.
type export struct {
	size       int64 // bytes
	flags      wire.TransmissionFlags
	sizes      wire.BlockSizes // zero if the server did not say
	structured bool
	extended   bool
	status     bool   // there is a metadata context for block status
	context    uint32 // its number
}

// handshake is a connection before transmission.
type handshake struct {
	conn     net.Conn
	o        *Options
	noZeroes bool
	export   export
}

// refusal is an option that the server did not want.
type refusal struct {
	reason  wire.ReplyType
	message string // the server's words, may be empty
}

var refusals = map[wire.ReplyType]string{
	wire.RepErrUnsupported: "not supported", wire.RepErrPolicy: "denied by policy", wire.RepErrInvalid: "called invalid",
	wire.RepErrPlatform: "not possible on its platform", wire.RepErrTLSRequired: "TLS is required",
	wire.RepErrUnknown: "not available", wire.RepErrShutdown: "the server is shutting down",
	wire.RepErrBlockSize: "block sizes are required", wire.RepErrTooBig: "called too big",
	wire.RepErrExtendedOnly: "extended headers are required",
}

func (r *refusal) Error() string {
	text := refusals[r.reason]
	if text == "" {
		text = fmt.Sprintf("refused with error %#x", uint32(r.reason))
	}
	if r.message != "" {
		text += " (server reported: " + printable(r.message) + ")"
	}
	return text
}

// negotiate goes through the handshake. The connection that it returns is conn, or one that encrypts what goes over it.
func negotiate(ctx context.Context, conn net.Conn, o *Options) (net.Conn, export, error) {
	stop := context.AfterFunc(ctx, func() {
		_ = conn.SetDeadline(time.Unix(1, 0)) // fails only on a closed connection, where nothing blocks
	})
	h := &handshake{conn: conn, o: o}
	err := h.run(ctx)
	if !stop() && ctx.Err() != nil {
		return nil, export{}, fmt.Errorf("NBD server '%s' did not answer in time: %w", o.Server, context.Cause(ctx))
	}
	if err != nil {
		return nil, export{}, err
	}
	return h.conn, h.export, nil
}

func (h *handshake) run(ctx context.Context) error {
	b, err := h.receive(wire.GreetingSize)
	if err != nil {
		return fmt.Errorf("NBD server '%s' gave no greeting: %w", h.o.Server, err)
	}
	offered, err := wire.ParseGreeting(b)
	if err != nil {
		return fmt.Errorf("'%s': %w", h.o.Server, err)
	}
	agreed := offered & (wire.FixedNewstyle | wire.NoZeroes)
	h.noZeroes = agreed&wire.NoZeroes != 0
	if err := h.send(wire.AppendClientFlags(nil, agreed)); err != nil {
		return err
	}
	if agreed&wire.FixedNewstyle == 0 {
		if h.o.TLS != nil {
			return fmt.Errorf("NBD server '%s' does not know TLS", h.o.Server)
		}
		return h.exportName()
	}
	if h.o.TLS != nil {
		if err := h.startTLS(ctx); err != nil {
			return err
		}
	}
	if h.export.extended, err = h.agree(wire.OptExtendedHeaders); err != nil {
		return err
	}
	h.export.structured = h.export.extended
	if !h.export.structured {
		if h.export.structured, err = h.agree(wire.OptStructuredReply); err != nil {
			return err
		}
	}
	if h.export.structured {
		if err := h.setContext(); err != nil {
			return err
		}
	}
	return h.enter()
}

// option sends an option and hands the answers before the last one to each. A refusal is of type *refusal.
func (h *handshake) option(o wire.Option, data []byte, each func(t wire.ReplyType, body []byte) error) error {
	message := wire.OptionHeader{Option: o, Length: uint32(len(data))}.Append(nil)
	if err := h.send(append(message, data...)); err != nil {
		return err
	}
	for range maxAnswers {
		b, err := h.receive(wire.OptionReplySize)
		if err != nil {
			return err
		}
		reply, err := wire.ParseOptionReply(b)
		switch {
		case err != nil:
			return err
		case reply.Option != o:
			return fmt.Errorf("an answer to option %d, not to option %d", reply.Option, o)
		case reply.Length > maxAnswer:
			return fmt.Errorf("an answer of %d bytes to option %d", reply.Length, o)
		}
		if b, err = h.receive(int(reply.Length)); err != nil {
			return err
		}
		switch {
		case reply.Type.IsError():
			return &refusal{reply.Type, string(b)}
		case reply.Type == wire.RepAck:
			return nil
		case each == nil:
			return fmt.Errorf("an answer of type %d to option %d", reply.Type, o)
		}
		if err := each(reply.Type, b); err != nil {
			return err
		}
	}
	return fmt.Errorf("more than %d answers to option %d", maxAnswers, o)
}

// agree sends an option without data, and says whether the server takes it.
func (h *handshake) agree(o wire.Option) (bool, error) {
	err := h.option(o, nil, nil)
	var no *refusal
	if errors.As(err, &no) {
		if no.reason == wire.RepErrTLSRequired || no.reason == wire.RepErrShutdown {
			return false, h.refused(no)
		}
		return false, nil
	}
	return err == nil, err
}

func (h *handshake) refused(no *refusal) error {
	kind := block.KindIO
	switch no.reason {
	case wire.RepErrUnknown:
		kind = block.KindNotFound
	case wire.RepErrPolicy, wire.RepErrTLSRequired:
		kind = block.KindPermission
	}
	return &block.Error{Kind: kind, Op: block.OpOpen,
		Err: fmt.Errorf("Requested export '%s' of NBD server '%s': %w", h.o.Export, h.o.Server, no)}
}

func (h *handshake) startTLS(ctx context.Context) error {
	err := h.option(wire.OptStartTLS, nil, nil)
	var no *refusal
	if errors.As(err, &no) {
		return &block.Error{Kind: block.KindPermission, Op: block.OpOpen,
			Err: fmt.Errorf("NBD server '%s' does not start TLS: %w", h.o.Server, no)}
	}
	if err != nil {
		return err
	}
	encrypted := tls.Client(h.conn, h.o.TLS)
	if err := encrypted.HandshakeContext(ctx); err != nil {
		return fmt.Errorf("TLS with NBD server '%s': %w", h.o.Server, err)
	}
	h.conn = encrypted
	return nil
}

// setContext selects the metadata context that block status comes from. Servers may lack it.
func (h *handshake) setContext() error {
	want := h.o.context()
	query := wire.MetaQuery{Name: h.o.Export, Queries: []string{want}}
	err := h.option(wire.OptSetMetaContext, query.Append(nil), func(t wire.ReplyType, body []byte) error {
		if t != wire.RepMetaContext {
			return fmt.Errorf("an answer of type %d to the wish for a metadata context", t)
		}
		c, err := wire.ParseMetaContext(body)
		if err != nil {
			return err
		}
		if c.Name == want {
			h.export.status, h.export.context = true, c.ID
		}
		return nil
	})
	var no *refusal
	if errors.As(err, &no) { // also if there is no such export, which the next option tells better
		h.export.status = false
		return nil
	}
	return err
}

// enter asks for the export and begins transmission.
func (h *handshake) enter() error {
	known := false
	query := wire.ExportQuery{Name: h.o.Export, Infos: []wire.InfoType{wire.InfoBlockSize}}
	err := h.option(wire.OptGo, query.Append(nil), func(t wire.ReplyType, body []byte) error {
		if t != wire.RepInfo {
			return fmt.Errorf("an answer of type %d to the wish for an export", t)
		}
		info, err := wire.ParseInfo(body)
		if err != nil {
			return err
		}
		switch info.Type {
		case wire.InfoExport:
			known = true
			return h.take(info.Export)
		case wire.InfoBlockSize:
			h.export.sizes = info.BlockSizes
		}
		return nil
	})
	var no *refusal
	switch {
	case errors.As(err, &no) && no.reason == wire.RepErrUnsupported:
		return h.exportName()
	case errors.As(err, &no):
		return h.refused(no)
	case err != nil:
		return err
	case !known:
		return fmt.Errorf("NBD server '%s' did not say how large the export is", h.o.Server)
	}
	return h.checkSizes()
}

// exportName is the old way to ask for the export, which a server can refuse only by ending the connection.
func (h *handshake) exportName() error {
	message := wire.OptionHeader{Option: wire.OptExportName, Length: uint32(len(h.o.Export))}.Append(nil)
	if err := h.send(append(message, h.o.Export...)); err != nil {
		return err
	}
	length := 10
	if !h.noZeroes {
		length += exportNamePadding
	}
	b, err := h.receive(length)
	if err != nil {
		return &block.Error{Kind: block.KindNotFound, Op: block.OpOpen,
			Err: fmt.Errorf("Requested export '%s' of NBD server '%s' not available: %w", h.o.Export, h.o.Server, err)}
	}
	info, err := wire.ParseInfo(append([]byte{0, byte(wire.InfoExport)}, b[:10]...))
	if err != nil {
		return err
	}
	if err := h.take(info.Export); err != nil {
		return err
	}
	return h.checkSizes()
}

func (h *handshake) take(i wire.ExportInfo) error {
	if i.Size > math.MaxInt64-sector {
		return fmt.Errorf("the export of NBD server '%s' is too large: %d bytes", h.o.Server, i.Size)
	}
	h.export.size, h.export.flags = int64(i.Size), i.Flags
	if i.Flags&wire.HasFlags == 0 {
		h.export.flags = 0
	}
	return nil
}

func (h *handshake) checkSizes() error {
	s := h.export.sizes
	switch {
	case s.Minimum > maxMinimum:
		return fmt.Errorf("NBD server '%s' takes no requests below %d bytes, %d is allowed", h.o.Server, s.Minimum, maxMinimum)
	case s.Minimum > 0 && h.export.size%int64(s.Minimum) != 0:
		return fmt.Errorf("export length %d is not multiple of minimum block size %d", h.export.size, s.Minimum)
	}
	return nil
}

// send writes a message. A server that hung up may have said why: TLS 1.3 refuses a client's certificate after the client
// holds the handshake for done.
func (h *handshake) send(message []byte) error {
	_, err := h.conn.Write(message)
	if err == nil {
		return nil
	}
	if _, why := h.receive(1); why != nil && !errors.Is(why, io.ErrUnexpectedEOF) {
		err = why
	}
	return fmt.Errorf("NBD server '%s' ended the handshake: %w", h.o.Server, err)
}

// receive reads exactly n bytes.
func (h *handshake) receive(n int) ([]byte, error) {
	b := make([]byte, n)
	_, err := io.ReadFull(h.conn, b)
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return b, err
}

// printable is what a server wrote, fit for an error message.
func printable(s string) string {
	const most = 256
	if len(s) > most {
		s = s[:most] + "…"
	}
	q := fmt.Sprintf("%q", s)
	return q[1 : len(q)-1]
}
