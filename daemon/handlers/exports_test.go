// SPDX-License-Identifier: Apache-2.0

package handlers

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/blkmirror/blkmirror/block/nbd/nbdguest"
)

func TestExportedBitmaps(t *testing.T) {
	h, try := run(t)
	socket := filepath.Join(t.TempDir(), "nbd")
	do := func(command, arguments string) {
		t.Helper()
		if err := try(command, arguments); err != nil {
			t.Fatal(err)
		}
	}
	refused := func(command, arguments, want string) {
		t.Helper()
		if err := try(command, arguments); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s %s: error is %v, want %q", command, arguments, err, want)
		}
	}
	do("blockdev-add", `{"driver": "null-co", "node-name": "d", "size": 1048576}`)
	do("blockdev-add", `{"driver": "null-co", "node-name": "other", "size": 1048576}`)
	do("blockdev-add", `{"driver": "null-co", "node-name": "short", "size": 4096}`)
	for _, bitmap := range []string{`"d", "name": "b"`, `"other", "name": "o"`, `"short", "name": "s"`, `"other", "name": "b"`} {
		do("block-dirty-bitmap-add", `{"node": `+bitmap+`}`)
	}
	do("nbd-server-start", `{"addr": {"type": "unix", "data": {"path": `+quote(t, socket)+`}}}`)
	add := func(bitmaps string) string {
		return `{"type": "nbd", "id": "e", "node-name": "d", "writable": true, "allocation-depth": true, "bitmaps": [` + bitmaps + `]}`
	}
	refused("block-export-add", add(`"none"`), "Bitmap 'none' is not found")
	refused("block-export-add", add(`{"node": "none", "name": "b"}`), "none")
	refused("block-export-add", add(`{"node": "short", "name": "s"}`), "4096 bytes")
	refused("block-export-add", add(`"b", {"node": "other", "name": "b"}`), "two bitmaps named 'b'")
	refused("block-export-add", add(`"b", "b"`), "two bitmaps named 'b'")
	refused("block-export-add", `{"type": "nbd", "id": "e", "node-name": "d", "bitmaps": ["b"]}`, "Enabled bitmap 'b' incompatible with readonly export")
	do("block-export-add", add(`"b", {"node": "other", "name": "o"}`))
	refused("block-dirty-bitmap-remove", `{"node": "d", "name": "b"}`, "currently in use")
	s, err := nbdguest.Connect(t.Context(), "unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.StructuredReplies(t.Context()); err != nil {
		t.Fatal(err)
	}
	want := []string{"base:allocation", "qemu:allocation-depth", "qemu:dirty-bitmap:b", "qemu:dirty-bitmap:o"}
	if got, err := s.SetMetaContext(t.Context(), "d", want...); err != nil || strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("contexts are %q, %v", got, err)
	}
	do("block-export-del", `{"id": "e"}`)
	do("block-dirty-bitmap-remove", `{"node": "d", "name": "b"}`)
	if len(h.exports.List()) > 0 {
		t.Error("there are exports")
	}
}

func TestBadAddresses(t *testing.T) {
	_, try := run(t)
	for address, want := range map[string]string{
		`"vsock", "data": {"cid": "3", "port": "1"}`: "Sockets of type 'vsock' are not available",
		`"fd", "data": {"str": "x"}`:                 "'x' is no number of a descriptor",
		`"fd", "data": {"str": "1"}`:                 "standard",
		`"inet", "data": {"host": "localhost", "port": "0", "ipv4": false, "ipv6": false}`: "Cannot disable IPv4 and IPv6",
		`"inet", "data": {"host": "localhost", "port": "0", "numeric": true}`:              "no numeric address",
		`"inet", "data": {"host": "localhost", "port": "0", "mptcp": true}`:                "mptcp",
		`"inet", "data": {"host": "127.0.0.1", "port": "9", "to": 8}`:                      "No ports from '9' to 8",
	} {
		if err := try("nbd-server-start", `{"addr": {"type": `+address+`}}`); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error is %v, want %q", address, err, want)
		}
	}
}
