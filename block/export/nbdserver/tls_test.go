// SPDX-License-Identifier: Apache-2.0

package nbdserver

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"net"
	"testing"
	"time"

	"github.com/blkmirror/blkmirror/block/nbd"
)

// selfSigned is a certificate that is its own authority, for both sides.
func selfSigned(t testing.TB, name string) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pool
}

// tlsHouse wants TLS with a client's certificate, and lets in whoever is named friend.
func tlsHouse(t testing.TB) (h *house, client func(name string) *tls.Config) {
	server, roots := selfSigned(t, "server")
	clients := x509.NewCertPool()
	made := map[string]tls.Certificate{}
	for _, name := range []string{"friend", "other"} {
		cert, _ := selfSigned(t, name)
		leaf, err := x509.ParseCertificate(cert.Certificate[0])
		if err != nil {
			t.Fatal(err)
		}
		clients.AddCert(leaf)
		made[name] = cert
	}
	made["stranger"], _ = selfSigned(t, "stranger")
	h = newHouse(t, Options{
		HandshakeTimeout: patience,
		TLS:              &tls.Config{Certificates: []tls.Certificate{server}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: clients},
		Authorize: func(s tls.ConnectionState) error {
			if name := s.PeerCertificates[0].Subject.CommonName; name != "friend" {
				return errors.New("not " + name)
			}
			return nil
		}})
	h.export("d")
	return h, func(name string) *tls.Config {
		c := &tls.Config{RootCAs: roots, ServerName: "server"}
		if cert, ok := made[name]; ok {
			c.Certificates = []tls.Certificate{cert}
		}
		return c
	}
}

// startTLS greets, asks for TLS and shakes hands.
func (h *house) startTLS(config *tls.Config) (net.Conn, error) {
	h.t.Helper()
	conn := h.greeted(nbd.FixedNewstyle | nbd.NoZeroes)
	if answers, _ := h.option(conn, nbd.OptStartTLS, nil); answers[0].Type != nbd.RepAck {
		h.t.Fatalf("the answer is %+v", answers)
	}
	secure := tls.Client(conn, config)
	return secure, secure.HandshakeContext(h.bounded())
}

func TestTLS(t *testing.T) {
	h, client := tlsHouse(t)
	conn, err := h.startTLS(client("friend"))
	h.must(err)
	if answers, _ := h.option(conn, nbd.OptStartTLS, nil); answers[0].Type != nbd.RepErrInvalid {
		t.Errorf("TLS in TLS: %+v", answers)
	}
	if answers, _ := h.option(conn, nbd.OptList, nil); len(answers) != 2 {
		t.Errorf("the list is %+v", answers)
	}
	h.option(conn, nbd.OptExtendedHeaders, nil)
	h.option(conn, nbd.OptGo, nbd.ExportQuery{Name: "d"}.Append(nil))
	for _, n := range []int{1, 4096, gatherBytes, 1 << 20} {
		data := bytes.Repeat([]byte{byte(n), 2, 3}, n/3+1)[:n]
		if e := h.errno(conn, nbd.Request{Command: nbd.CmdWrite, Flags: nbd.FlagPayloadLen, Offset: 5, Length: uint64(n)}, data); e != 0 {
			t.Fatal(e)
		}
		// Several at a time, so that replies gather.
		var b []byte
		for i := range uint64(3) {
			b = nbd.Request{Command: nbd.CmdRead, Flags: nbd.FlagDF, Cookie: i, Offset: 5, Length: uint64(n)}.AppendExtended(b)
		}
		h.send(conn, b)
		for range 3 {
			h.receive(conn, nbd.ExtendedChunkSize+8)
			if got := h.receive(conn, n); !bytes.Equal(got, data) {
				t.Errorf("%d bytes came back different", n)
			}
		}
	}
	h.send(conn, nbd.Request{Command: nbd.CmdDisconnect}.AppendExtended(nil))
	if n, err := conn.Read(make([]byte, 1)); n != 0 || err == nil || err.Error() != "EOF" {
		t.Errorf("the end is not told: %v", err)
	}
	h.must(wait(h, h.closed, "the end"))
}

func TestTLSIsRequired(t *testing.T) {
	h, _ := tlsHouse(t)
	conn := h.greeted(nbd.FixedNewstyle)
	for _, o := range []nbd.Option{nbd.OptList, nbd.OptInfo, nbd.OptGo, nbd.OptStructuredReply, nbd.OptExtendedHeaders, nbd.OptListMetaContext, 4711} {
		answers, _ := h.option(conn, o, nil)
		if len(answers) != 1 || answers[0].Type != nbd.RepErrTLSRequired {
			t.Errorf("option %d: %+v", o, answers)
		}
	}
	if answers, _ := h.option(conn, nbd.OptStartTLS, []byte{1}); answers[0].Type != nbd.RepErrInvalid {
		t.Errorf("%+v", answers)
	}
	h.send(conn, append(nbd.OptionHeader{Option: nbd.OptExportName, Length: 1}.Append(nil), 'd'))
	h.receiveEnd(conn)
	h.wantErr(wait(h, h.closed, "the end"), "did not ask for TLS")
	conn = h.greeted(nbd.FixedNewstyle)
	if answers, _ := h.option(conn, nbd.OptAbort, nil); answers[0].Type != nbd.RepAck {
		t.Errorf("%+v", answers)
	}
}

func TestTLSRefusals(t *testing.T) {
	h, client := tlsHouse(t)
	for name, want := range map[string]string{"other": "not other", "stranger": "TLS handshake", "": "TLS handshake"} {
		// With TLS 1.3 a client learns of a refusal when it reads.
		if conn, err := h.startTLS(client(name)); err == nil {
			if n, err := conn.Read(make([]byte, 1)); n > 0 || err == nil {
				t.Errorf("client %q got in", name)
			}
		}
		h.wantErr(wait(h, h.closed, "the end"), want)
	}
	// What comes before TLS is there may be somebody else's.
	conn := h.greeted(nbd.FixedNewstyle)
	b := nbd.OptionHeader{Option: nbd.OptStartTLS}.Append(nil)
	h.send(conn, nbd.OptionHeader{Option: nbd.OptList}.Append(b))
	h.receiveEnd(conn)
	h.wantErr(wait(h, h.closed, "the end"), "before TLS")
}

func TestTLSHandshakeIsBounded(t *testing.T) {
	server, _ := selfSigned(t, "server")
	h := newHouse(t, Options{TLS: &tls.Config{Certificates: []tls.Certificate{server}}, HandshakeTimeout: 500 * time.Millisecond})
	conn := h.greeted(nbd.FixedNewstyle)
	h.option(conn, nbd.OptStartTLS, nil)
	h.receiveEnd(conn)
	h.wantErr(wait(h, h.closed, "the end"), "TLS handshake")
	// And a stop does not wait for it.
	h = newHouse(t, Options{TLS: &tls.Config{Certificates: []tls.Certificate{server}}})
	conn = h.greeted(nbd.FixedNewstyle)
	h.option(conn, nbd.OptStartTLS, nil)
	h.must(h.server.Stop(h.bounded()))
	h.receiveEnd(conn)
}

func FuzzTLSHandshake(f *testing.F) {
	server, _ := selfSigned(f, "server")
	h := newHouse(f, Options{TLS: &tls.Config{Certificates: []tls.Certificate{server}}})
	h.export("d")
	b := nbd.OptionHeader{Option: nbd.OptStartTLS}.Append(nbd.AppendClientFlags(nil, nbd.FixedNewstyle))
	f.Add(b)
	f.Add(append(b, 0x16, 3, 1, 0, 5))
	fuzzHouse(f, h, nil)
}
