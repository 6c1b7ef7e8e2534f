// SPDX-License-Identifier: Apache-2.0

package nbd

import (
	"fmt"
	"net"
	"net/url"
	"strings"

	"github.com/blkmirror/blkmirror/block"
)

const defaultPort = "10809"

// IsURI says whether a file name is an NBD URI, for [ParseURI].
func IsURI(name string) bool {
	for _, scheme := range []string{"nbd://", "nbds://", "nbd+unix://", "nbds+unix://"} {
		if strings.HasPrefix(strings.ToLower(name), scheme) {
			return true
		}
	}
	return false
}

// ParseURI reads where an export is from one of
//
//	nbd://HOST[:PORT]/EXPORT               nbd+unix:///EXPORT?socket=PATH
//
// URIs that begin with nbds ask for TLS, which encrypted tells; o.TLS is left to the caller.
func ParseURI(name string) (o Options, encrypted bool, err error) {
	bad := func(format string, args ...any) (Options, bool, error) {
		return Options{}, false, &block.Error{Kind: block.KindInvalid, Op: block.OpOpen,
			Err: fmt.Errorf("'%s' is no NBD URI: "+format, append([]any{name}, args...)...)}
	}
	u, err := url.Parse(name)
	if err != nil {
		return bad("%w", err)
	}
	scheme, unix := strings.CutSuffix(u.Scheme, "+unix")
	if scheme != "nbd" && scheme != "nbds" {
		return bad("it begins with '%s'", u.Scheme)
	}
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return bad("%w", err)
	}
	o.Export = strings.TrimPrefix(u.Path, "/")
	socket := query["socket"]
	switch {
	case u.User != nil, u.Fragment != "":
		return bad("it has a user or a fragment")
	case unix && (u.Host != "" || len(socket) != 1 || socket[0] == ""):
		return bad("it needs three slashes and one '?socket=PATH'")
	case unix:
		o.Server = Address{Network: "unix", Address: socket[0]}
	case len(socket) > 0:
		return bad("only nbd+unix has a socket")
	case u.Hostname() == "":
		return bad("it names no host")
	default:
		port := u.Port()
		if port == "" {
			port = defaultPort
		}
		o.Server = Address{Network: "tcp", Address: net.JoinHostPort(u.Hostname(), port)}
	}
	return o, scheme == "nbds", o.check()
}
