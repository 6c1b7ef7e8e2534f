// SPDX-License-Identifier: Apache-2.0

package nbd

import (
	"crypto/tls"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/blkmirror/blkmirror/block"
	wire "github.com/blkmirror/blkmirror/block/nbd"
)

// MaxConnections is the most connections of one disk.
const MaxConnections = 16

// Options say what to open and how.
type Options struct {
	Server Address
	Export string // name of the export, "" for the server's default

	ReadOnly     bool // never write
	AutoReadOnly bool // be content with a server that does not let us write

	// TLS encrypts the connections if it is not nil; its ServerName is what the server's certificate must be for.
	TLS *tls.Config

	ReconnectDelay time.Duration // how long requests wait for a new session
	OpenTimeout    time.Duration // how long Open goes on trying; 0 to try once
	Connections    int           // how many to use where the server allows more than one; 0 for one
	Context        string        // metadata context for block status; "" for base:allocation
}

// Address is where a server is.
type Address struct {
	Network string // "unix", "tcp", "tcp4", "tcp6" or "fd"
	Address string // path ("@" and a name for an abstract socket), host:port, or the number of a descriptor
	MPTCP   bool   // use multi-path TCP
}

func (a Address) String() string { return a.Address }

// FileName tells an export as a URI.
func (a Address) FileName(export string, encrypted bool) string {
	scheme, path := "nbd", "/"+(&url.URL{Path: export}).EscapedPath()
	if encrypted {
		scheme += "s"
	}
	switch a.Network {
	case "unix":
		socket := a.Address
		if name, abstract := strings.CutPrefix(socket, "@"); abstract {
			socket = "\x00" + name
		}
		return scheme + "+unix://" + path + "?socket=" + strings.ReplaceAll(url.QueryEscape(socket), "%2F", "/")
	case "fd":
		return scheme + "+fd://" + a.Address + path
	}
	return (&url.URL{Scheme: scheme, Host: a.Address, Path: "/" + export}).String()
}

func (o *Options) check() error {
	switch {
	case len(o.Export) > wire.MaxString:
		return invalid("export name too long to send to server")
	case len(o.Context) > wire.MaxString:
		return invalid("x-dirty-bitmap query too long to send to server")
	case o.Connections < 0 || o.Connections > MaxConnections:
		return invalid("Parameter 'connections' expects a number from 1 to %d, not %d", MaxConnections, o.Connections)
	case o.ReconnectDelay < 0 || o.OpenTimeout < 0:
		return invalid("a time to wait cannot be negative")
	}
	switch o.Server.Network {
	case "unix":
		if o.Server.Address == "" {
			return invalid("Parameter 'server.path' cannot be empty")
		}
	case "tcp", "tcp4", "tcp6":
		if _, _, err := net.SplitHostPort(o.Server.Address); err != nil {
			return invalid("'%s' is no address: %w", o.Server.Address, err)
		}
	case "fd":
		if n, err := strconv.Atoi(o.Server.Address); err != nil || n < 0 {
			return invalid("'%s' is not the number of a descriptor", o.Server.Address)
		}
		if o.Connections > 1 {
			return invalid("Parameter 'connections' cannot be above 1 with a descriptor, which is one connection")
		}
	default:
		return invalid("NBD servers cannot be reached by '%s'", o.Server.Network)
	}
	return nil
}

func (o *Options) context() string {
	if o.Context != "" {
		return o.Context
	}
	return wire.BaseAllocation
}

func invalid(format string, args ...any) error {
	return &block.Error{Kind: block.KindInvalid, Op: block.OpOpen, Err: fmt.Errorf(format, args...)}
}
