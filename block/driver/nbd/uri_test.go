// SPDX-License-Identifier: Apache-2.0

package nbd

import (
	"strings"
	"testing"

	"github.com/blkmirror/blkmirror/block"
)

func TestParseURI(t *testing.T) {
	for _, c := range []struct {
		uri  string
		want URI
		name string // what FileName makes of it, if it is another
	}{
		{uri: "nbd://host/disk", want: URI{Server: Address{Network: "tcp", Address: "host:10809"}, Export: "disk", TLSHostname: "host"},
			name: "nbd://host:10809/disk"},
		{uri: "nbd://host", want: URI{Server: Address{Network: "tcp", Address: "host:10809"}, TLSHostname: "host"},
			name: "nbd://host:10809/"},
		{uri: "nbd://host:1234/", want: URI{Server: Address{Network: "tcp", Address: "host:1234"}, TLSHostname: "host"}},
		{uri: "nbd://host:1234//disk", want: URI{Server: Address{Network: "tcp", Address: "host:1234"}, Export: "/disk",
			TLSHostname: "host"}},
		{uri: "nbds://[::1]:5/a%20b/c", want: URI{Server: Address{Network: "tcp", Address: "[::1]:5"}, Export: "a b/c",
			Encrypted: true, TLSHostname: "::1"}},
		{uri: "nbds://10.0.0.1:5/?tls-hostname=h&tls-certificates=/etc/pki&tls-verify-peer=0&tls-type=x509",
			want: URI{Server: Address{Network: "tcp", Address: "10.0.0.1:5"}, Encrypted: true, TLSHostname: "h",
				TLSCertificates: "/etc/pki", TLSAnyPeer: true}, name: "nbds://10.0.0.1:5/"},
		{uri: "nbd+unix:///?socket=/run/nbd", want: URI{Server: Address{Network: "unix", Address: "/run/nbd"}}},
		{uri: "NBD+Unix:///?socket=/run/nbd", want: URI{Server: Address{Network: "unix", Address: "/run/nbd"}},
			name: "nbd+unix:///?socket=/run/nbd"},
		{uri: "nbd+unix:///disk?socket=/run/a+b%26c", want: URI{Server: Address{Network: "unix", Address: "/run/a b&c"}, Export: "disk"}},
		{uri: "nbds+unix:///disk?socket=rel", want: URI{Server: Address{Network: "unix", Address: "rel"}, Export: "disk", Encrypted: true}},
		{uri: "nbd+unix:///?socket=%00/abstract", want: URI{Server: Address{Network: "unix", Address: "@/abstract"}}},
		{uri: "nbd+unix:///?socket=@file", want: URI{Server: Address{Network: "unix", Address: "./@file"}},
			name: "nbd+unix:///?socket=./%40file"},
	} {
		u, err := ParseURI(c.uri)
		if err != nil || *u != c.want || !IsURI(c.uri) {
			t.Errorf("%s: %+v, %v", c.uri, u, err)
			continue
		}
		want := c.name
		if want == "" {
			want = c.uri
		}
		if got := u.Server.FileName(u.Export, u.Encrypted); got != want {
			t.Errorf("%s becomes %s", c.uri, got)
		}
	}
	for uri, want := range map[string]string{
		"":                                     "begins with ''",
		"http://host/":                         "begins with 'http'",
		"nbd:host:10809":                       "names no host",
		"nbd:///disk":                          "names no host",
		"nbd://h/?socket=/x":                   "only nbd+unix",
		"nbd+unix:///d":                        "three slashes",
		"nbd+unix://host/d?socket=/x":          "three slashes",
		"nbd+unix:///d?socket=":                "three slashes",
		"nbd+unix:///d?socket=/a&socket=/b":    "'socket' more than once",
		"nbd://u@h/":                           "a user",
		"nbd://h/#f":                           "a fragment",
		"nbd://h:x/":                           "port",
		"nbd://h/?%":                           "escape",
		"nbd://h/a%00b":                        "zero byte",
		"nbd://h/?tls-hostname=x":              "for URIs that begin with nbds",
		"nbds://h/?tls-type=psk":               "can only be x509",
		"nbds://h/?tls-verify-peer=yes":        "is 0 or 1",
		"nbds://h/?tls-psk-file=/x":            "'tls-psk-file' is not known",
		"nbd://h/?colour=blue":                 "'colour' is not known",
		"nbd://h/" + strings.Repeat("x", 5000): "too long",
	} {
		if _, err := ParseURI(uri); err == nil || block.KindOf(err) != block.KindInvalid || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", uri, err, want)
		}
	}
}

// FuzzParseURI has every URI that is understood come out of its own name again.
func FuzzParseURI(f *testing.F) {
	f.Add("nbd://host:1/disk")
	f.Add("nbds+unix:///a%2Fb?socket=%00/x&tls-hostname=h&tls-verify-peer=1")
	f.Add("nbd://[fe80::1%25eth0]/")
	f.Fuzz(func(t *testing.T, text string) {
		u, err := ParseURI(text)
		if err != nil {
			return
		}
		again, err := ParseURI(u.Server.FileName(u.Export, u.Encrypted))
		if err != nil || again.Server != u.Server || again.Export != u.Export || again.Encrypted != u.Encrypted {
			t.Errorf("%q is %+v, which becomes %+v, %v", text, u, again, err)
		}
	})
}
