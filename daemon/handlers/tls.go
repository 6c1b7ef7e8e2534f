// SPDX-License-Identifier: Apache-2.0

package handlers

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"

	"github.com/blkmirror/blkmirror/daemon/credentials"
	"github.com/blkmirror/blkmirror/qmp"
	"github.com/blkmirror/blkmirror/qmp/api"
)

// onlyPriority is the one value of a priority that changes nothing.
const onlyPriority = "NORMAL"

// secrets is what an object for TLS or authorisation was made from; one field is set.
type secrets struct {
	x509   *api.TlsCredsX509Properties
	read   *credentials.X509 // what was in the files of x509
	list   *api.AuthZListProperties
	simple *api.AuthZSimpleProperties
}

// newSecrets makes what objects of these kinds need, nothing for the others.
func newSecrets(o *api.ObjectOptions) (s secrets, err error) {
	switch {
	case o.TLSCredsPsk != nil, o.TLSCredsAnon != nil:
		return s, qmp.Errorf("Objects of type '%s' are not available: Go's TLS has certificates only, use 'tls-creds-x509'", o.QOMType)
	case o.TLSCredsX509 != nil:
		p := o.TLSCredsX509
		if priority := qmp.Or(p.Priority, onlyPriority); priority != onlyPriority {
			return s, qmp.Errorf("Property 'priority' does not accept '%s', only '%s': TLS is 1.2 or newer, with ciphers that are safe",
				priority, onlyPriority)
		}
		if p.Passwordid != nil {
			return s, qmp.Errorf("Property 'passwordid' is not supported: give a key without a password")
		}
		s.x509 = p
		s.read, err = credentials.Load(credentials.Options{Dir: qmp.Or(p.Dir, ""),
			Server:     p.Endpoint == api.QCryptoTLSCredsEndpointServer,
			VerifyPeer: qmp.Or(p.VerifyPeer, true), SanityCheck: qmp.Or(p.SanityCheck, true)})
		if err != nil {
			return s, qmp.Errorf("%s", err)
		}
	default:
		s.list, s.simple = o.AuthzList, o.AuthzSimple
	}
	return s, nil
}

// rules are those of an object that says who may come in, if it is one.
func (s secrets) rules() (credentials.Rules, bool) {
	var r credentials.Rules
	switch {
	case s.simple != nil:
		r.List = []credentials.Rule{{Match: s.simple.Identity, Allow: true}}
	case s.list != nil:
		r.Otherwise = s.list.Policy == api.QAuthZListPolicyAllow
		for _, rule := range s.list.Rules {
			r.List = append(r.List, credentials.Rule{Match: rule.Match, Glob: rule.Format == api.QAuthZListFormatGlob,
				Allow: rule.Policy == api.QAuthZListPolicyAllow})
		}
	default:
		return r, false
	}
	return r, true
}

// doorkeepers are the objects that say who may come in. They are asked when a client comes, whatever command runs then.
type doorkeepers struct {
	mu struct {
		sync.Mutex
		rules map[string]credentials.Rules // by the id of the object
	}
}

func (d *doorkeepers) add(id string, r credentials.Rules) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.mu.rules == nil {
		d.mu.rules = map[string]credentials.Rules{}
	}
	d.mu.rules[id] = r
}

func (d *doorkeepers) remove(id string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.mu.rules, id)
}

// admit looks at the certificate of a client. An object that is not there lets nobody in.
func (d *doorkeepers) admit(id string, s tls.ConnectionState) error {
	if len(s.PeerCertificates) == 0 {
		return errors.New("TLS authorization: the client has no certificate")
	}
	d.mu.Lock()
	rules, found := d.mu.rules[id]
	d.mu.Unlock()
	switch who := credentials.Subject(s.PeerCertificates[0]); {
	case !found:
		return fmt.Errorf("TLS authorization of '%s': there is no object '%s'", who, id)
	case !rules.Allow(who):
		return fmt.Errorf("TLS authorization of '%s': denied by '%s'", who, id)
	}
	return nil
}

// credentials finds TLS credentials for one side of connections. They stay good when the object is deleted.
func (h *Handlers) credentials(id string, side api.QCryptoTLSCredsEndpoint) (*credentials.X509, error) {
	switch o, found := h.objects[id]; {
	case !found:
		return nil, qmp.Errorf("No TLS credentials with id '%s'", id)
	case o.read == nil:
		return nil, qmp.Errorf("Object with id '%s' is not TLS credentials", id)
	case o.read.IsServer() != (side == api.QCryptoTLSCredsEndpointServer):
		return nil, qmp.Errorf("Expecting TLS credentials with a %s endpoint", side)
	default:
		return o.read, nil
	}
}

// serverTLS is how a server encrypts, and whom it lets in: nil without credentials, and for everybody.
func (h *Handlers) serverTLS(creds, authz *string) (*tls.Config, func(tls.ConnectionState) error, error) {
	if creds == nil {
		if authz != nil {
			return nil, nil, qmp.Errorf("Parameter 'tls-authz' needs 'tls-creds'")
		}
		return nil, nil, nil
	}
	c, err := h.credentials(*creds, api.QCryptoTLSCredsEndpointServer)
	if err != nil || authz == nil {
		if err != nil {
			return nil, nil, err
		}
		return c.Server(), nil, nil
	}
	if !c.VerifiesPeer() {
		return nil, nil, qmp.Errorf("Parameter 'tls-authz' goes by the client's certificate, but '%s' has verify-peer=off", *creds)
	}
	return c.Server(), func(s tls.ConnectionState) error { return h.doors.admit(*authz, s) }, nil
}

// SecureMonitor is how clients of a monitor must prove who they are, with a certificate. What it returns waits for a client
// until its context ends, and may be called by many goroutines at once.
func (h *Handlers) SecureMonitor(creds string, authz *string) (func(context.Context, net.Conn) (net.Conn, error), error) {
	config, authorize, err := h.serverTLS(&creds, authz)
	if err != nil {
		return nil, err
	}
	if config.ClientAuth != tls.RequireAndVerifyClientCert {
		return nil, qmp.Errorf("'%s' has verify-peer=off: clients of a monitor must have certificates", creds)
	}
	return func(ctx context.Context, conn net.Conn) (net.Conn, error) {
		secure := tls.Server(conn, config)
		if err := secure.HandshakeContext(ctx); err != nil {
			return nil, fmt.Errorf("TLS handshake: %w", err)
		}
		if authorize != nil {
			if err := authorize(secure.ConnectionState()); err != nil {
				return nil, err
			}
		}
		return secure, nil
	}, nil
}

// clientTLS is how a client encrypts that connects to a server of the given host name.
func (h *Handlers) clientTLS(creds, host string) (*tls.Config, error) {
	c, err := h.credentials(creds, api.QCryptoTLSCredsEndpointClient)
	if err != nil {
		return nil, err
	}
	if host == "" && c.VerifiesPeer() {
		return nil, qmp.Errorf("Parameter 'tls-hostname' is missing: the server's certificate must be held against a name")
	}
	return c.Client(host), nil
}

// secretProperties are those of objects for TLS and authorisation. All are fixed.
func secretProperties(kind api.ObjectType) []property {
	fixed := func(name, kind string, get func(s secrets) any) property {
		return property{name: name, kind: kind, get: func(o object) any { return get(o.secrets) }}
	}
	switch kind {
	case api.ObjectTypeTLSCredsX509:
		return []property{
			fixed("dir", "string", func(s secrets) any { return qmp.Or(s.x509.Dir, "") }),
			fixed("endpoint", "QCryptoTLSCredsEndpoint", func(s secrets) any {
				if s.read.IsServer() {
					return string(api.QCryptoTLSCredsEndpointServer)
				}
				return string(api.QCryptoTLSCredsEndpointClient)
			}),
			fixed("verify-peer", "bool", func(s secrets) any { return s.read.VerifiesPeer() }),
			fixed("sanity-check", "bool", func(s secrets) any { return qmp.Or(s.x509.SanityCheck, true) }),
			fixed("priority", "string", func(s secrets) any { return qmp.Or(s.x509.Priority, "") }),
		}
	case api.ObjectTypeAuthzList:
		return []property{
			fixed("policy", "QAuthZListPolicy", func(s secrets) any {
				if s.list.Policy == api.QAuthZListPolicyAllow {
					return string(api.QAuthZListPolicyAllow)
				}
				return string(api.QAuthZListPolicyDeny)
			}),
			fixed("rules", "QAuthZListRule", func(s secrets) any { return append([]api.QAuthZListRule{}, s.list.Rules...) }),
		}
	case api.ObjectTypeAuthzSimple:
		return []property{fixed("identity", "string", func(s secrets) any { return s.simple.Identity })}
	}
	return nil
}
