// SPDX-License-Identifier: Apache-2.0

package nbdserver

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/blkmirror/blkmirror/block/nbd"
)

const (
	maxOption      = 64 << 10 // bytes of data that an option of a client in its senses has
	maxOptionDrain = 1 << 20  // bytes of data that are read to refuse the option politely
	offered        = nbd.FixedNewstyle | nbd.NoZeroes
)

// run serves the client from the greeting to the end of the connection.
func (s *session) run(ctx context.Context, o Options) error {
	defer s.in.release()
	if o.HandshakeTimeout > 0 {
		_ = s.conn.SetDeadline(time.Now().Add(o.HandshakeTimeout))
	}
	h := handshake{session: s, manyConns: o.MaxConnections != 1, tls: o.TLS, authorize: o.Authorize}
	proceed, err := h.negotiate(ctx)
	if s.export != nil {
		defer s.export.leave(s)
	}
	if err != nil || !proceed {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.mu.err != nil { // why it was killed says more than that the connection is closed
			err = s.mu.err
		}
		return err
	}
	_ = s.conn.SetDeadline(time.Time{})
	return s.transmit(ctx)
}

// handshake is the first phase of a session.
type handshake struct {
	*session
	manyConns bool
	tls       *tls.Config // nil for none
	authorize func(tls.ConnectionState) error
	noZeroes  bool
	fixed     bool

	metaExport *Export       // what contexts were selected of
	selected   []metaContext // the contexts
	reply      []byte
}

// negotiate answers options until the client goes on to transmission, with s.export set, or leaves.
func (h *handshake) negotiate(ctx context.Context) (transmit bool, err error) {
	if err := h.send(nbd.AppendGreeting(nil, offered)); err != nil {
		return false, err
	}
	b, err := h.in.next(nbd.ClientFlagsSize)
	if err == io.EOF {
		return false, nil // somebody looked whether there is a server
	}
	if err != nil {
		return false, fmt.Errorf("client flags: %w", err)
	}
	flags, err := nbd.ParseClientFlags(b, offered)
	if err != nil {
		return false, err
	}
	h.fixed, h.noZeroes = flags&nbd.FixedNewstyle != 0, flags&nbd.NoZeroes != 0
	for {
		b, err := h.in.next(nbd.OptionSize)
		if err == io.EOF {
			return false, nil
		}
		if err != nil {
			return false, fmt.Errorf("option: %w", err)
		}
		head, err := nbd.ParseOptionHeader(b)
		if err != nil {
			return false, err
		}
		done, err := h.option(ctx, head)
		if done || err != nil {
			return h.export != nil && err == nil, err
		}
	}
}

var errNotFixed = errors.New("a client that does not speak fixed newstyle may only send EXPORT_NAME")

// option answers one option; done if none follows.
func (h *handshake) option(ctx context.Context, head nbd.OptionHeader) (done bool, err error) {
	if !h.fixed && head.Option != nbd.OptExportName {
		return false, errNotFixed
	}
	if head.Length > maxOption {
		if head.Length > maxOptionDrain || head.Option == nbd.OptExportName {
			return false, fmt.Errorf("an option with %d bytes of data", head.Length)
		}
		if err := h.in.discard(int64(head.Length)); err != nil {
			return false, err
		}
		return false, h.answer(head, nbd.RepErrTooBig, []byte("too much data"))
	}
	data, err := h.in.next(int(head.Length))
	if err != nil {
		return false, fmt.Errorf("data of an option: %w", noEOF(err))
	}
	if refused, err := h.refuseInsecure(head); refused {
		return false, err
	}
	switch head.Option {
	case nbd.OptStartTLS:
		return false, h.startTLS(ctx, head, data)
	case nbd.OptExportName:
		return true, h.exportName(string(data))
	case nbd.OptAbort:
		_ = h.answer(head, nbd.RepAck, nil) // the client may be gone already, as it may
		return true, nil
	case nbd.OptList:
		return false, h.list(head, data)
	case nbd.OptInfo, nbd.OptGo:
		return h.infoOrGo(head, data)
	case nbd.OptStructuredReply:
		if len(data) > 0 {
			return false, h.answer(head, nbd.RepErrInvalid, []byte("the option has no data"))
		}
		if h.form == extended {
			return false, h.answer(head, nbd.RepErrExtendedOnly, []byte("extended headers were agreed on"))
		}
		h.form = structured
		return false, h.answer(head, nbd.RepAck, nil)
	case nbd.OptExtendedHeaders:
		if len(data) > 0 {
			return false, h.answer(head, nbd.RepErrInvalid, []byte("the option has no data"))
		}
		h.form, h.requestSize = extended, nbd.ExtendedRequestSize
		return false, h.answer(head, nbd.RepAck, nil)
	case nbd.OptListMetaContext, nbd.OptSetMetaContext:
		return false, h.metaContext(head, data)
	}
	return false, h.answer(head, nbd.RepErrUnsupported, nil)
}

func (h *handshake) send(b []byte) error {
	_, err := h.stream.Write(b)
	return err
}

// answer sends one reply to an option; with an error, data is a message for people.
func (h *handshake) answer(head nbd.OptionHeader, t nbd.ReplyType, data []byte) error {
	h.reply = nbd.OptionReply{Option: head.Option, Type: t, Length: uint32(len(data))}.Append(h.reply[:0])
	return h.send(append(h.reply, data...))
}

func (h *handshake) exportName(name string) error {
	if h.form == extended {
		return errors.New("the client sent EXPORT_NAME after it had agreed on extended headers")
	}
	e := h.server.find(name)
	if e == nil || !e.enter(h.session) {
		return fmt.Errorf("the client asked for an unknown export %.100q", name)
	}
	h.choose(e)
	return h.send(nbd.AppendExportNameReply(nil, uint64(e.backend.Size()), h.flags(e), h.noZeroes))
}

// choose fixes the export of the session, which has entered it.
func (h *handshake) choose(e *Export) {
	h.export = e
	if h.metaExport == e {
		h.contexts = h.selected
	}
}

func (h *handshake) list(head nbd.OptionHeader, data []byte) error {
	if len(data) > 0 {
		return h.answer(head, nbd.RepErrInvalid, []byte("the option has no data"))
	}
	for _, e := range h.server.list() {
		entry := nbd.ServerEntry{Name: e.config.Name, Description: e.config.Description}
		if err := h.answer(head, nbd.RepServer, entry.Append(nil)); err != nil {
			return err
		}
	}
	return h.answer(head, nbd.RepAck, nil)
}

// infoOrGo tells about an export, and goes on with it if the option is Go.
func (h *handshake) infoOrGo(head nbd.OptionHeader, data []byte) (done bool, err error) {
	q, err := nbd.ParseExportQuery(data)
	if err != nil {
		return false, h.answer(head, nbd.RepErrInvalid, []byte(err.Error()))
	}
	e := h.server.find(q.Name)
	if e == nil {
		return false, h.unknown(head)
	}
	if head.Option == nbd.OptGo {
		if !e.enter(h.session) {
			return false, h.unknown(head)
		}
		h.choose(e)
	}
	facts := [][]byte{
		nbd.ExportInfo{Size: uint64(e.backend.Size()), Flags: h.flags(e)}.Append(nil),
		e.blockSizes(h.maxRequest).Append(nil),
	}
	if slices.Contains(q.Infos, nbd.InfoName) {
		facts = append(facts, nbd.AppendTextInfo(nil, nbd.InfoName, e.config.Name))
	}
	if slices.Contains(q.Infos, nbd.InfoDescription) && e.config.Description != "" {
		facts = append(facts, nbd.AppendTextInfo(nil, nbd.InfoDescription, e.config.Description))
	}
	for _, fact := range facts {
		if err := h.answer(head, nbd.RepInfo, fact); err != nil {
			return false, err
		}
	}
	return head.Option == nbd.OptGo, h.answer(head, nbd.RepAck, nil)
}

// flags are what an export can do for this client.
func (h *handshake) flags(e *Export) nbd.TransmissionFlags {
	flags := nbd.HasFlags | nbd.SendFlush | nbd.SendFUA | nbd.SendCache
	if e.config.Writable {
		flags |= nbd.SendTrim | nbd.SendWriteZeroes | nbd.SendFastZero
	} else {
		flags |= nbd.ReadOnly
	}
	if h.form != simple {
		flags |= nbd.SendDF
	}
	if h.form == extended {
		flags |= nbd.BlockStatusPayload
	}
	if h.manyConns || !e.config.Writable {
		flags |= nbd.CanMultiConn
	}
	return flags
}

func (h *handshake) unknown(head nbd.OptionHeader) error {
	return h.answer(head, nbd.RepErrUnknown, []byte("there is no such export"))
}
