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
		{uri: "nbd:unix:/run/a b?c:exportname=d:e%20/f", want: URI{Server: Address{Network: "unix", Address: "/run/a b?c"},
			Export: "d:e%20/f"}, name: "nbd+unix:///d:e%2520/f?socket=/run/a+b%3Fc"},
		{uri: "nbd:unix:rel", want: URI{Server: Address{Network: "unix", Address: "rel"}}, name: "nbd+unix:///?socket=rel"},
		{uri: "nbd:host:1:exportname=/disk", want: URI{Server: Address{Network: "tcp", Address: "host:1"}, Export: "/disk",
			TLSHostname: "host"}, name: "nbd://host:1//disk"},
		{uri: "nbd:[::1]:5:exportname=", want: URI{Server: Address{Network: "tcp", Address: "[::1]:5"}, TLSHostname: "::1"},
			name: "nbd://[::1]:5/"},
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
		"":                              "begins with ''",
		"http://host/":                  "begins with 'http'",
		"nbd:host":                      "missing port",
		"nbd:host:":                     "no host or no port",
		"nbd::10809":                    "no host or no port",
		"nbd:host:10809,ipv4=on":        "port",
		"nbd:unix:":                     "no socket",
		"nbd:unix::exportname=disk":     "no socket",
		"nbd:unix:/x:exportname=a\x00b": "zero byte",
		"nbd:h:1:exportname=" + strings.Repeat("x", 5000): "too long",
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
	f.Add("nbd:unix:/a?b:exportname=c d")
	f.Add("nbd:[::1]:10809:exportname=/%")
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
