// SPDX-License-Identifier: Apache-2.0

package nbd

import (
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
)

const defaultPort = "10809"

// URI is what an NBD URI says: the document doc/uri.md beside the specification of the protocol tells its form.
type URI struct {
	Server Address
	Export string

	// Encrypted is set by the schemes that begin with nbds. The others mean that TLS is not needed.
	Encrypted bool
	// TLSHostname is what the server's certificate must be for: the parameter tls-hostname, or else the host.
	TLSHostname string
	// TLSCertificates is a folder with credentials: the parameter tls-certificates, which is libnbd's. "" if there is none.
	TLSCertificates string
	// TLSAnyPeer is set by tls-verify-peer=0: the server's certificate does not matter.
	TLSAnyPeer bool
}

// oldScheme begins the form that QEMU had before there were URIs.
const oldScheme = "nbd:"

// IsURI says whether a file name is an NBD URI, for [ParseURI].
func IsURI(name string) bool {
	if strings.HasPrefix(name, oldScheme) {
		return true
	}
	for _, scheme := range []string{"nbd://", "nbds://", "nbd+unix://", "nbds+unix://"} {
		if len(name) >= len(scheme) && strings.EqualFold(name[:len(scheme)], scheme) {
			return true
		}
	}
	return false
}

// ParseURI reads where an export is from one of
//
//	nbd://HOST[:PORT]/EXPORT               nbd+unix:///EXPORT?socket=PATH
//
// or the same with nbds for TLS, or from the old form that the headers of images may still have
//
//	nbd:HOST:PORT[:exportname=EXPORT]      nbd:unix:PATH[:exportname=EXPORT]
//
// where nothing is escaped.
func ParseURI(name string) (*URI, error) {
	text := name
	if old, is := strings.CutPrefix(name, oldScheme); is && !strings.HasPrefix(old, "//") {
		var err error
		if text, err = modern(old); err != nil {
			return nil, invalid("'%s' is no NBD URI: %w", name, err)
		}
	}
	u, err := url.Parse(text)
	if err != nil {
		return nil, invalid("%w", err) // names the URI
	}
	parsed, err := parseURI(u)
	if err != nil {
		return nil, invalid("'%s' is no NBD URI: %w", name, err)
	}
	o := Options{Server: parsed.Server, Export: parsed.Export}
	return parsed, o.check()
}

// modern is the URI that says the same as the old form, which is given without nbd:.
func modern(old string) (string, error) {
	where, export, _ := strings.Cut(old, ":exportname=")
	if path, unix := strings.CutPrefix(where, "unix:"); unix {
		if path == "" {
			return "", fmt.Errorf("it names no socket")
		}
		return UnixPath(path).FileName(export, false), nil
	}
	host, port, err := net.SplitHostPort(where)
	switch {
	case err != nil:
		return "", fmt.Errorf("nbd:HOST:PORT or nbd:unix:PATH is expected, then maybe :exportname=EXPORT: %w", err)
	case host == "" || port == "":
		return "", fmt.Errorf("it names no host or no port")
	}
	return Address{Network: "tcp", Address: where}.FileName(export, false), nil
}

func parseURI(u *url.URL) (*URI, error) {
	scheme, unix := strings.CutSuffix(u.Scheme, "+unix")
	if scheme != "nbd" && scheme != "nbds" {
		return nil, fmt.Errorf("it begins with '%s'", u.Scheme)
	}
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return nil, err
	}
	p := &URI{Export: strings.TrimPrefix(u.Path, "/"), Encrypted: scheme == "nbds", TLSHostname: u.Hostname()}
	if strings.Contains(p.Export, "\x00") {
		return nil, fmt.Errorf("the name of the export has a zero byte")
	}
	switch {
	case u.User != nil, u.Fragment != "":
		return nil, fmt.Errorf("it has a user or a fragment")
	case unix && (u.Host != "" || query.Get("socket") == ""):
		return nil, fmt.Errorf("it needs three slashes and '?socket=PATH'")
	case unix:
		p.Server = unixAddress(query.Get("socket"))
	case query.Has("socket"):
		return nil, fmt.Errorf("only nbd+unix has a socket")
	case u.Hostname() == "":
		return nil, fmt.Errorf("it names no host")
	default:
		port := u.Port()
		if port == "" {
			port = defaultPort
		}
		p.Server = Address{Network: "tcp", Address: net.JoinHostPort(u.Hostname(), port)}
	}
	return p, p.parameters(query)
}

// unixAddress is a path, or after a zero byte the name of an abstract socket.
func unixAddress(socket string) Address {
	if name, abstract := strings.CutPrefix(socket, "\x00"); abstract {
		return Address{Network: "unix", Address: "@" + name}
	}
	return UnixPath(socket)
}

// UnixPath is the address of a socket in the file system.
func UnixPath(path string) Address {
	if strings.HasPrefix(path, "@") { // Go takes that for an abstract socket
		path = "./" + path
	}
	return Address{Network: "unix", Address: path}
}

// parameters takes what stands behind the question mark.
func (p *URI) parameters(query url.Values) error {
	var names []string
	for name := range query {
		names = append(names, name)
	}
	slices.Sort(names) // the same error for the same URI
	for _, name := range names {
		if len(query[name]) > 1 {
			return fmt.Errorf("it has '%s' more than once", name)
		}
		value := query.Get(name)
		if strings.HasPrefix(name, "tls-") && !p.Encrypted {
			return fmt.Errorf("'%s' is for URIs that begin with nbds", name)
		}
		switch name {
		case "socket":
		case "tls-hostname":
			p.TLSHostname = value
		case "tls-certificates":
			p.TLSCertificates = value
		case "tls-verify-peer":
			if value != "0" && value != "1" {
				return fmt.Errorf("'%s' is 0 or 1, not '%s'", name, value)
			}
			p.TLSAnyPeer = value == "0"
		case "tls-type":
			if value != "x509" {
				return fmt.Errorf("'%s' can only be x509, not '%s': Go's TLS has certificates only", name, value)
			}
		default:
			return fmt.Errorf("the parameter '%s' is not known", name)
		}
	}
	return nil
}
