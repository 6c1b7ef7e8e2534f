// SPDX-License-Identifier: Apache-2.0

package handlers

import (
	"crypto/tls"
	"net"
	"time"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/driver/nbd"
	"github.com/blkmirror/blkmirror/daemon/credentials"
	"github.com/blkmirror/blkmirror/qmp"
	"github.com/blkmirror/blkmirror/qmp/api"
)

// nbdOptions turns the options of an nbd node into those of its driver, but for TLS.
func nbdOptions(o *api.BlockdevOptionsNbd, n *nodeOptions) (nbd.Options, error) {
	if qmp.Or(o.Connections, 1) < 1 || qmp.Or(o.Connections, 1) > nbd.MaxConnections {
		return nbd.Options{}, qmp.Errorf("Parameter 'connections' expects a number from 1 to %d", nbd.MaxConnections)
	}
	options := nbd.Options{Export: qmp.Or(o.Export, ""), ReadOnly: n.ReadOnly, AutoReadOnly: n.autoReadOnly,
		ReconnectDelay: time.Duration(qmp.Or(o.ReconnectDelay, 0)) * time.Second,
		OpenTimeout:    time.Duration(qmp.Or(o.OpenTimeout, 0)) * time.Second,
		Connections:    int(qmp.Or(o.Connections, 1)), Context: qmp.Or(o.XDirtyBitmap, "")}
	uri, err := nbdURI(o)
	switch {
	case err != nil:
		return nbd.Options{}, err
	case uri != nil:
		options.Server, options.Export = uri.Server, uri.Export
	case o.TLSHostname != nil && o.TLSCreds == nil:
		return nbd.Options{}, qmp.Errorf("Parameter 'tls-hostname' needs 'tls-creds'")
	default:
		if options.Server, err = nbdServer(o.Server); err != nil {
			return nbd.Options{}, err
		}
	}
	return options, nil
}

// nbdURI is the URI of options that have one, else nil.
func nbdURI(o *api.BlockdevOptionsNbd) (*nbd.URI, error) {
	switch {
	case o.URI == nil && o.Server == nil:
		return nil, qmp.Errorf("Parameter 'server' is missing; 'uri' can take its place")
	case o.URI == nil:
		return nil, nil
	}
	for _, p := range []struct {
		name  string
		given bool
	}{{"server", o.Server != nil}, {"export", o.Export != nil}, {"tls-hostname", o.TLSHostname != nil}} {
		if p.given {
			return nil, qmp.Errorf("Parameters 'uri' and '%s' exclude each other: a URI says it all", p.name)
		}
	}
	return nbd.ParseURI(*o.URI)
}

// nbdTLS is how the node encrypts its connections, nil if it does not. The server's certificate is for tls-hostname, or else for
// the host that the node connects to.
func (h *Handlers) nbdTLS(o *api.BlockdevOptionsNbd) (*tls.Config, error) {
	uri, err := nbdURI(o)
	if err != nil {
		return nil, err
	}
	host := qmp.Or(o.TLSHostname, "")
	switch {
	case uri != nil && uri.TLSCertificates != "" && o.TLSCreds != nil:
		return nil, qmp.Errorf("The URI has 'tls-certificates', which excludes parameter 'tls-creds'")
	case uri != nil && uri.TLSAnyPeer && o.TLSCreds != nil:
		return nil, qmp.Errorf("The URI has 'tls-verify-peer', which excludes parameter 'tls-creds'; its object says verify-peer")
	case uri != nil && uri.TLSCertificates != "":
		return uriTLS(uri)
	case o.TLSCreds == nil && uri != nil && uri.Encrypted:
		return nil, qmp.Errorf("TLS needs credentials: '%s' must have 'tls-certificates=DIR', or the node 'tls-creds'", *o.URI)
	case o.TLSCreds == nil:
		return nil, nil
	case uri != nil:
		host = uri.TLSHostname
	case host == "" && o.Server.Inet != nil:
		host = o.Server.Inet.Host
	}
	return h.clientTLS(*o.TLSCreds, host)
}

// uriTLS takes the credentials from the folder that a URI names.
func uriTLS(u *nbd.URI) (*tls.Config, error) {
	c, err := credentials.Load(credentials.Options{Dir: u.TLSCertificates, VerifyPeer: !u.TLSAnyPeer, SanityCheck: true})
	if err != nil {
		return nil, qmp.Errorf("%s", err)
	}
	if u.TLSHostname == "" && c.VerifiesPeer() {
		return nil, qmp.Errorf("The URI lacks 'tls-hostname': the server's certificate must be held against a name")
	}
	return c.Client(u.TLSHostname), nil
}

// openNBD is how the driver of an nbd node is made, of a connection that there is, see connecting.
func (h *Handlers) openNBD(o *api.BlockdevOptionsNbd, n *nodeOptions) (func([]*block.Edge) (block.Driver, error), error) {
	options, err := h.nbdDriver(o, n)
	if err != nil {
		return nil, err
	}
	return func([]*block.Edge) (block.Driver, error) {
		c, err := h.connections.take(targetOf(o, options), options)
		if err != nil {
			return nil, err
		}
		return c, nil
	}, nil
}

func (h *Handlers) nbdDriver(o *api.BlockdevOptionsNbd, n *nodeOptions) (nbd.Options, error) {
	options, err := nbdOptions(o, n)
	if err == nil {
		options.TLS, err = h.nbdTLS(o)
	}
	return options, err
}

// nbdServer is where a server is, in the driver's form.
func nbdServer(a *api.SocketAddress) (nbd.Address, error) {
	switch {
	case a.Unix != nil && (a.Unix.Mode != nil || a.Unix.Group != nil || a.Unix.AllowUids != nil):
		return nbd.Address{}, qmp.Errorf("Parameters 'server.mode', 'server.group' and 'server.allow-uids' are for sockets that are listened on")
	case a.Unix != nil:
		path := a.Unix.Path
		if qmp.Or(a.Unix.Abstract, false) {
			if !qmp.Or(a.Unix.Tight, true) {
				return nbd.Address{}, qmp.Errorf("Parameter 'server.tight' does not accept value 'false'")
			}
			return nbd.Address{Network: "unix", Address: "@" + path}, nil
		}
		return nbd.UnixPath(path), nil
	case a.Inet != nil:
		if qmp.Or(a.Inet.Numeric, false) && net.ParseIP(a.Inet.Host) == nil {
			return nbd.Address{}, qmp.Errorf("Parameter 'server.host' expects a numeric address, not '%s'", a.Inet.Host)
		}
		return nbd.Address{Network: tcpNetwork(a.Inet), Address: net.JoinHostPort(a.Inet.Host, a.Inet.Port),
			MPTCP: qmp.Or(a.Inet.Mptcp, false)}, nil
	case a.Fd != nil:
		return nbd.Address{Network: "fd", Address: a.Fd.Str}, nil
	}
	return nbd.Address{}, qmp.Errorf("Parameter 'server.type' does not accept value '%s'", a.Type)
}

// tcpNetwork is "tcp", or what is left of it when one of IPv4 and IPv6 is not wanted.
func tcpNetwork(a *api.InetSocketAddress) string {
	v4, v6 := a.IPv4, a.IPv6
	switch {
	case qmp.Or(v4, false) && !qmp.Or(v6, false), v6 != nil && !*v6 && v4 == nil:
		return "tcp4"
	case qmp.Or(v6, false) && !qmp.Or(v4, false), v4 != nil && !*v4 && v6 == nil:
		return "tcp6"
	}
	return "tcp"
}

// sameNBD refuses changes of the options of an nbd node, which keeps its connection when it is reopened.
func sameNBD(n *block.Node, was, becomes *openedNode) error {
	old, err := nbdOptions(was.options.NBD, &becomes.resolved)
	if err != nil {
		return err
	}
	o, err := nbdOptions(becomes.options.NBD, &becomes.resolved)
	if err != nil {
		return err
	}
	disk, _ := n.Driver().(*connection)
	switch {
	case old.Server != o.Server:
		return qmp.Errorf("Cannot change the option 'server'")
	case old.Export != o.Export:
		return qmp.Errorf("Cannot change the option 'export'")
	case old != o, qmp.Or(was.options.NBD.TLSCreds, "") != qmp.Or(becomes.options.NBD.TLSCreds, ""),
		qmp.Or(was.options.NBD.TLSHostname, "") != qmp.Or(becomes.options.NBD.TLSHostname, ""),
		qmp.Or(was.options.NBD.URI, "") != qmp.Or(becomes.options.NBD.URI, ""):
		return qmp.Errorf("Cannot change the options of the connection to an NBD server")
	case !o.ReadOnly && !o.AutoReadOnly && disk != nil && disk.ReadOnly():
		return qmp.Errorf("Node '%s' cannot be reopened for writing: the export is read-only", n.Name())
	}
	return nil
}
