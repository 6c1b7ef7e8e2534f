// SPDX-License-Identifier: Apache-2.0

package credentials

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// CAKey is the key of an authority. Who has it can issue certificates; servers and clients do not need it.
const CAKey = "ca-key.pem"

const (
	fileMode   = 0o600
	folderMode = 0o700
	// clockSkew is by how much clocks of peers may be behind.
	clockSkew = time.Hour
)

// Authority signs certificates.
type Authority struct {
	cert *x509.Certificate
	pem  []byte
	key  crypto.Signer
}

// Request is what a new certificate is about.
type Request struct {
	Server       bool
	Name         string   // the common name
	Organization string   // may be empty
	Hosts        []string // of a server: names and addresses that clients use
	ValidFor     time.Duration
	Replace      bool // write over files that are there
}

// NewAuthority makes an authority and writes its certificate and key to a directory, which it makes if need be.
func NewAuthority(dir, name string, validFor time.Duration, replace bool) (*Authority, error) {
	template, key, err := prepare(name, "", validFor)
	if err != nil {
		return nil, err
	}
	template.IsCA, template.BasicConstraintsValid, template.MaxPathLenZero = true, true, true
	template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("making the certificate of an authority: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	a := &Authority{cert: cert, pem: certPEM(der), key: key}
	keyText, err := keyPEM(key)
	if err != nil {
		return nil, err
	}
	return a, write(dir, replace, file{CACert, a.pem}, file{CAKey, keyText})
}

// OpenAuthority reads an authority from its directory.
func OpenAuthority(dir string) (*Authority, error) {
	pair, err := keyPair(filepath.Join(dir, CACert), filepath.Join(dir, CAKey))
	if err != nil {
		return nil, err
	}
	key, ok := pair.PrivateKey.(crypto.Signer)
	if !ok || !pair.Leaf.IsCA {
		return nil, fmt.Errorf("The certificate %s is not for a CA", filepath.Join(dir, CACert))
	}
	if err := inTime(filepath.Join(dir, CACert), pair.Leaf); err != nil {
		return nil, err
	}
	return &Authority{cert: pair.Leaf, pem: certPEM(pair.Certificate[0]), key: key}, nil
}

// Issue makes a certificate with its key and writes both to a directory, with the certificate of the authority if that is not
// there yet. It returns the certificate.
func (a *Authority) Issue(dir string, r Request) (*x509.Certificate, error) {
	template, key, err := prepare(r.Name, r.Organization, r.ValidFor)
	if err != nil {
		return nil, err
	}
	if template.NotAfter.After(a.cert.NotAfter) {
		template.NotAfter = a.cert.NotAfter
	}
	template.BasicConstraintsValid, template.KeyUsage = true, x509.KeyUsageDigitalSignature
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	names := [2]string{ClientCert, ClientKey}
	if r.Server {
		template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		names = [2]string{ServerCert, ServerKey}
		if len(r.Hosts) == 0 {
			return nil, errors.New("a server needs a host name or an address by which clients know it")
		}
	}
	for _, host := range r.Hosts {
		if ip := net.ParseIP(host); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, host)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		return nil, fmt.Errorf("making the certificate of '%s': %w", r.Name, err)
	}
	keyText, err := keyPEM(key)
	if err != nil {
		return nil, err
	}
	files := []file{{names[1], keyText}, {names[0], certPEM(der)}}
	switch there, err := read(filepath.Join(dir, CACert)); {
	case errors.Is(err, fs.ErrNotExist):
		files = append(files, file{CACert, a.pem})
	case err != nil:
		return nil, err
	case string(there) != string(a.pem) && !r.Replace:
		return nil, fmt.Errorf("%s is of another authority", filepath.Join(dir, CACert))
	case string(there) != string(a.pem):
		files = append(files, file{CACert, a.pem})
	}
	if err := write(dir, r.Replace, files...); err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// prepare makes a key, and what all certificates have in common.
func prepare(name, organization string, validFor time.Duration) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	if name == "" {
		return nil, nil, errors.New("a certificate needs a name")
	}
	if validFor <= 0 {
		return nil, nil, errors.New("a certificate must be valid for a while")
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, nil, err
	}
	subject := pkix.Name{CommonName: name}
	if organization != "" {
		subject.Organization = []string{organization}
	}
	now := time.Now()
	return &x509.Certificate{SerialNumber: serial.Add(serial, big.NewInt(1)), Subject: subject, NotBefore: now.Add(-clockSkew),
		NotAfter: now.Add(validFor)}, key, nil
}

func certPEM(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func keyPEM(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

type file struct {
	name string
	text []byte
}

// write writes files that only their owner may read. Unless replace, it changes nothing if one is there.
func write(dir string, replace bool, files ...file) error {
	if err := os.MkdirAll(dir, folderMode); err != nil {
		return err
	}
	for _, f := range files {
		if path := filepath.Join(dir, f.name); !replace && !missing(path) {
			return fmt.Errorf("%s is there already", path)
		}
	}
	for _, f := range files {
		if err := writeFile(dir, f); err != nil {
			return err
		}
	}
	return nil
}

// writeFile puts a file in its place in one step, so that nobody reads half of it.
func writeFile(dir string, f file) error {
	temporary, err := os.CreateTemp(dir, "."+f.name) // has mode 0600
	if err != nil {
		return err
	}
	_, err = temporary.Write(f.text)
	err = errors.Join(err, temporary.Chmod(fileMode), temporary.Sync(), temporary.Close())
	if err == nil {
		err = os.Rename(temporary.Name(), filepath.Join(dir, f.name))
	}
	if err != nil {
		_ = os.Remove(temporary.Name())
	}
	return err
}

// Certificate is the credentials' own, nil for a client without one.
func (c *X509) Certificate() *x509.Certificate {
	if len(c.own) == 0 {
		return nil
	}
	return c.own[0].Leaf
}

// Try shakes hands between the credentials of a server and those of a client that knows the server by the host name.
func Try(server, client *X509, host string) error {
	s, c := net.Pipe()
	defer s.Close()
	defer c.Close()
	done := make(chan error, 1)
	go func() {
		err := tls.Server(s, server.Server()).Handshake()
		_ = s.Close()
		done <- err
	}()
	// A client with TLS 1.3 is done before the server has looked at its certificate, and reads what comes after.
	secure := tls.Client(c, client.Client(host))
	err := secure.Handshake()
	if err == nil {
		_, _ = secure.Read(make([]byte, 1))
	}
	_ = c.Close()
	if refused := <-done; refused != nil && err == nil {
		err = refused
	}
	return err
}
