// SPDX-License-Identifier: Apache-2.0

package credentials

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// The files of a directory of credentials.
const (
	CACert     = "ca-cert.pem"
	CACRL      = "ca-crl.pem"
	ServerCert = "server-cert.pem"
	ServerKey  = "server-key.pem"
	ClientCert = "client-cert.pem"
	ClientKey  = "client-key.pem"
)

// maxFile is the most bytes of a file of credentials.
const maxFile = 1 << 20

// Options say what to read, and how strict to be.
type Options struct {
	Dir         string
	Server      bool // for a server; else for a client
	VerifyPeer  bool // a server asks clients for a certificate; a client wants the server's to be right
	SanityCheck bool // refuse at once what no peer will accept, such as what has expired
}

// X509 are credentials that were read.
type X509 struct {
	options Options
	roots   *x509.CertPool
	revoked revocations
	own     []tls.Certificate // none for a client without a certificate
}

// IsServer says for which side the credentials are.
func (c *X509) IsServer() bool { return c.options.Server }

// VerifiesPeer says whether the other side must have a certificate.
func (c *X509) VerifiesPeer() bool { return c.options.VerifyPeer }

// Load reads credentials. Errors name the file.
func Load(o Options) (*X509, error) {
	if o.Dir == "" {
		return nil, errors.New("Missing 'dir' property value")
	}
	authorities, err := certificates(filepath.Join(o.Dir, CACert))
	if err != nil {
		return nil, err
	}
	c := &X509{options: o, roots: x509.NewCertPool()}
	for _, a := range authorities {
		c.roots.AddCert(a)
	}
	if c.revoked, err = revocationList(filepath.Join(o.Dir, CACRL), authorities); err != nil {
		return nil, err
	}
	certFile, keyFile := filepath.Join(o.Dir, ClientCert), filepath.Join(o.Dir, ClientKey)
	if o.Server {
		certFile, keyFile = filepath.Join(o.Dir, ServerCert), filepath.Join(o.Dir, ServerKey)
	} else if missing(certFile) && missing(keyFile) {
		return c, c.checkAuthorities(authorities)
	}
	pair, err := keyPair(certFile, keyFile)
	if err != nil {
		return nil, err
	}
	c.own = []tls.Certificate{pair}
	if err := c.checkAuthorities(authorities); err != nil {
		return nil, err
	}
	return c, c.checkOwn(certFile, pair)
}

// checkAuthorities refuses authorities that cannot sign.
func (c *X509) checkAuthorities(list []*x509.Certificate) error {
	if !c.options.SanityCheck {
		return nil
	}
	file := filepath.Join(c.options.Dir, CACert)
	for _, a := range list {
		if err := inTime(file, a); err != nil {
			return err
		}
		if a.BasicConstraintsValid && !a.IsCA || a.KeyUsage != 0 && a.KeyUsage&x509.KeyUsageCertSign == 0 {
			return fmt.Errorf("The certificate %s is not for a CA", file)
		}
	}
	return nil
}

// checkOwn refuses a certificate that the peer will not accept.
func (c *X509) checkOwn(file string, pair tls.Certificate) error {
	if !c.options.SanityCheck {
		return nil
	}
	if err := inTime(file, pair.Leaf); err != nil {
		return err
	}
	usage, side := x509.ExtKeyUsageClientAuth, "client"
	if c.options.Server {
		usage, side = x509.ExtKeyUsageServerAuth, "server"
	}
	between := x509.NewCertPool()
	for _, der := range pair.Certificate[1:] {
		if cert, err := x509.ParseCertificate(der); err == nil {
			between.AddCert(cert)
		}
	}
	if pair.Leaf.IsCA {
		return fmt.Errorf("The certificate %s is for a CA, not for a %s", file, side)
	}
	if _, err := pair.Leaf.Verify(x509.VerifyOptions{Roots: c.roots, Intermediates: between,
		KeyUsages: []x509.ExtKeyUsage{usage}}); err != nil {
		return fmt.Errorf("The certificate %s is no good for a %s with %s: %w", file, side,
			filepath.Join(c.options.Dir, CACert), err)
	}
	return c.revoked.check([][]*x509.Certificate{{pair.Leaf}})
}

func inTime(file string, cert *x509.Certificate) error {
	switch now := time.Now(); {
	case now.Before(cert.NotBefore):
		return fmt.Errorf("The certificate %s is not yet active: it is from %s on", file, cert.NotBefore.Format(time.RFC3339))
	case now.After(cert.NotAfter):
		return fmt.Errorf("The certificate %s has expired on %s", file, cert.NotAfter.Format(time.RFC3339))
	}
	return nil
}

func missing(path string) bool {
	_, err := os.Lstat(path)
	return errors.Is(err, fs.ErrNotExist)
}

// read is a small file.
func read(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0) // does not wait for the writer of a pipe
	if err != nil {
		return nil, unable(path, err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, unable(path, err)
	}
	if len(b) > maxFile {
		return nil, unable(path, fmt.Errorf("more than %d bytes", maxFile))
	}
	return b, nil
}

func unable(path string, err error) error {
	var failed *fs.PathError
	if errors.As(err, &failed) {
		err = failed.Err
	}
	return fmt.Errorf("Unable to access credentials %s: %w", path, err)
}

// certificates reads a file with one or more of them.
func certificates(path string) ([]*x509.Certificate, error) {
	b, err := read(path)
	if err != nil {
		return nil, err
	}
	var list []*x509.Certificate
	for p, rest := pem.Decode(b); p != nil; p, rest = pem.Decode(rest) {
		if p.Type != "CERTIFICATE" {
			continue
		}
		cert, err := x509.ParseCertificate(p.Bytes)
		if err != nil {
			return nil, fmt.Errorf("Unable to import certificate %s: %w", path, err)
		}
		list = append(list, cert)
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("Unable to import certificate %s: there is none in it", path)
	}
	return list, nil
}

func keyPair(certFile, keyFile string) (tls.Certificate, error) {
	cert, err := read(certFile)
	if err != nil {
		return tls.Certificate{}, err
	}
	key, err := read(keyFile)
	if err != nil {
		return tls.Certificate{}, err
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err == nil && pair.Leaf == nil {
		pair.Leaf, err = x509.ParseCertificate(pair.Certificate[0])
	}
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("Unable to use certificate %s with key %s: %w", certFile, keyFile, err)
	}
	return pair, nil
}
