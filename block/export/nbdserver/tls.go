// SPDX-License-Identifier: Apache-2.0

package nbdserver

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/blkmirror/blkmirror/block/nbd"
)

// goodbye is how long a client may take to read the end of an encrypted connection.
const goodbye = time.Second

// secured says whether the client may go on to what is behind TLS.
func (h *handshake) secured() bool { return h.tls == nil || h.stream != h.conn }

// refuseInsecure answers an option of a client that must ask for TLS first, and says whether that was so. An option that
// can be answered by an end only is an error.
func (h *handshake) refuseInsecure(head nbd.OptionHeader) (refused bool, err error) {
	switch {
	case h.secured() || head.Option == nbd.OptStartTLS || head.Option == nbd.OptAbort:
		return false, nil
	case head.Option == nbd.OptExportName:
		return true, errors.New("the client did not ask for TLS")
	}
	return true, h.answer(head, nbd.RepErrTLSRequired, []byte("TLS comes first"))
}

// startTLS answers the option, and from then on all is encrypted. Nothing else was agreed on before, as it was refused.
func (h *handshake) startTLS(ctx context.Context, head nbd.OptionHeader, data []byte) error {
	switch {
	case len(data) > 0:
		return h.answer(head, nbd.RepErrInvalid, []byte("the option has no data"))
	case h.tls == nil:
		return h.answer(head, nbd.RepErrPolicy, []byte("TLS is not configured"))
	case h.stream != h.conn:
		return h.answer(head, nbd.RepErrInvalid, []byte("TLS is there already"))
	case len(h.in.buffered()) > 0:
		return errors.New("the client sent more before TLS was there") // somebody else may have put it there
	}
	if err := h.answer(head, nbd.RepAck, nil); err != nil {
		return err
	}
	secure := tls.Server(h.conn, h.tls)
	if err := secure.HandshakeContext(ctx); err != nil {
		return fmt.Errorf("TLS handshake: %w", err)
	}
	if h.authorize != nil {
		if err := h.authorize(secure.ConnectionState()); err != nil {
			return err
		}
	}
	h.stream, h.in.from = secure, secure
	return nil
}

// hangUp ends the connection. An encrypted one is ended in words, so that the client can tell the end from an attack.
func (s *session) hangUp() {
	if secure, ok := s.stream.(*tls.Conn); ok && !s.isBroken() {
		_ = s.conn.SetDeadline(time.Now().Add(goodbye))
		_ = secure.CloseWrite()
	}
	_ = s.conn.Close()
}

func (s *session) isBroken() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mu.broken
}

// gatherBytes is how much of small parts is sent at once where one system call cannot take several parts.
const gatherBytes = 64 << 10

// writeGathered writes parts to a connection that takes one slice at a time, in as few pieces as is worth the copying.
func writeGathered(to net.Conn, parts [][]byte, scratch []byte) ([]byte, error) {
	scratch = scratch[:0]
	for i, part := range parts {
		last := i == len(parts)-1
		if len(scratch)+len(part) <= gatherBytes {
			scratch = append(scratch, part...)
			if !last {
				continue
			}
			part = nil
		}
		for _, b := range [][]byte{scratch, part} {
			if len(b) == 0 {
				continue
			}
			if _, err := to.Write(b); err != nil {
				return scratch, err
			}
		}
		scratch = scratch[:0]
	}
	return scratch, nil
}
