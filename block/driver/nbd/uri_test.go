// SPDX-License-Identifier: Apache-2.0

package nbd

import (
	"testing"

	"github.com/blkmirror/blkmirror/block"
)

func TestParseURI(t *testing.T) {
	for _, c := range []struct {
		uri       string
		network   string
		address   string
		export    string
		encrypted bool
		name      string // what FileName makes of it, if it is another
	}{
		{uri: "nbd://host/disk", network: "tcp", address: "host:10809", export: "disk", name: "nbd://host:10809/disk"},
		{uri: "nbd://host:1234/", network: "tcp", address: "host:1234"},
		{uri: "nbds://[::1]:5/a%20b/c", network: "tcp", address: "[::1]:5", export: "a b/c", encrypted: true},
		{uri: "nbd+unix:///?socket=/run/nbd", network: "unix", address: "/run/nbd"},
		{uri: "nbd+unix:///disk?socket=/run/a+b%26c", network: "unix", address: "/run/a b&c", export: "disk"},
		{uri: "nbds+unix:///disk?socket=rel", network: "unix", address: "rel", export: "disk", encrypted: true},
	} {
		o, encrypted, err := ParseURI(c.uri)
		if err != nil || o.Server.Network != c.network || o.Server.Address != c.address || o.Export != c.export ||
			encrypted != c.encrypted {
			t.Errorf("%s: %+v, %v, %v", c.uri, o, encrypted, err)
			continue
		}
		want := c.name
		if want == "" {
			want = c.uri
		}
		if got := o.Server.FileName(o.Export, encrypted); got != want || !IsURI(got) {
			t.Errorf("%s becomes %s", c.uri, got)
		}
	}
	for _, uri := range []string{"", "http://host/", "nbd:host:10809", "nbd:///disk", "nbd://h/?socket=/x", "nbd+unix:///d",
		"nbd+unix://host/d?socket=/x", "nbd+unix:///d?socket=", "nbd://u@h/", "nbd://h/#f", "nbd://h:x/", "nbd://h/?%"} {
		if _, _, err := ParseURI(uri); err == nil || block.KindOf(err) != block.KindInvalid {
			t.Errorf("%q: %v", uri, err)
		}
	}
}
