// SPDX-License-Identifier: Apache-2.0

package credentials

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
)

// Server is the configuration of a server.
func (c *X509) Server() *tls.Config {
	config := c.config()
	if c.options.VerifyPeer {
		config.ClientAuth, config.ClientCAs = tls.RequireAndVerifyClientCert, c.roots
	}
	return config
}

// Client is the configuration of a client of a server that goes by a host name.
func (c *X509) Client(host string) *tls.Config {
	config := c.config()
	config.ServerName, config.RootCAs, config.InsecureSkipVerify = host, c.roots, !c.options.VerifyPeer
	return config
}

func (c *X509) config() *tls.Config {
	return &tls.Config{
		MinVersion:   tls.VersionTLS12,
		Certificates: c.own,
		// The connections live long and carry bulk data.
		DynamicRecordSizingDisabled: true,
		SessionTicketsDisabled:      true, // a session that is resumed would not be held against a newer list of revocations
		VerifyConnection: func(s tls.ConnectionState) error {
			return c.revoked.check(s.VerifiedChains)
		},
	}
}

// revocations are certificates that count no more, by their authority.
type revocations []*x509.RevocationList

// revocationList reads a list that may not be there, and must be signed by one of the authorities.
func revocationList(path string, authorities []*x509.Certificate) (revocations, error) {
	if missing(path) {
		return nil, nil
	}
	b, err := read(path)
	if err != nil {
		return nil, err
	}
	var lists revocations
	for p, rest := pem.Decode(b); p != nil; p, rest = pem.Decode(rest) {
		list, err := x509.ParseRevocationList(p.Bytes)
		if err != nil {
			return nil, fmt.Errorf("Unable to import %s: %w", path, err)
		}
		if !slices.ContainsFunc(authorities, func(a *x509.Certificate) bool { return list.CheckSignatureFrom(a) == nil }) {
			return nil, fmt.Errorf("Unable to import %s: it is not signed by an authority of %s", path, CACert)
		}
		lists = append(lists, list)
	}
	if len(lists) == 0 {
		return nil, fmt.Errorf("Unable to import %s: there is no list in it", path)
	}
	return lists, nil
}

var errRevoked = errors.New("the certificate was revoked")

// check refuses chains with a certificate that was revoked.
func (r revocations) check(chains [][]*x509.Certificate) error {
	for _, list := range r {
		for _, chain := range chains {
			for _, cert := range chain {
				if string(cert.RawIssuer) != string(list.RawIssuer) {
					continue
				}
				for _, entry := range list.RevokedCertificateEntries {
					if entry.SerialNumber.Cmp(cert.SerialNumber) == 0 {
						return fmt.Errorf("%s: %w", Subject(cert), errRevoked)
					}
				}
			}
		}
	}
	return nil
}
