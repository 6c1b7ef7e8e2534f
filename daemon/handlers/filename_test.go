// SPDX-License-Identifier: Apache-2.0

package handlers

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/blkmirror/blkmirror/qmp"
	"github.com/blkmirror/blkmirror/qmp/api"
)

func TestDefinitionOf(t *testing.T) {
	file := func(path string) string { return `{"driver": "file", "filename": "` + path + `"}` }
	for name, want := range map[string]string{
		"/images/base.img":                       file("/images/base.img"),
		"base.img":                               file("base.img"),
		"./odd:name":                             file("./odd:name"),
		"dir/nbd://host":                         file("dir/nbd://host"),
		"file:odd:name":                          file("odd:name"),
		"file:/images/base.img":                  file("/images/base.img"),
		"/dev/null":                              `{"driver": "host_device", "filename": "/dev/null"}`,
		"nbd://host/disk":                        `{"driver": "nbd", "uri": "nbd://host/disk"}`,
		"nbd:host:1:exportname=disk":             `{"driver": "nbd", "uri": "nbd:host:1:exportname=disk"}`,
		"NBDS+unix:///?socket=/s&tls-hostname=h": `{"driver": "nbd", "uri": "NBDS+unix:///?socket=/s&tls-hostname=h"}`,
		`json:{"driver": "raw", "read-only": true, "file": {"driver": "nbd", "uri": "nbd://h/"}}`: `{"driver": "raw", "read-only": true, "file": {"driver": "nbd", "uri": "nbd://h/"}}`,
		`json: {"driver":"null-co"}`: `{"driver": "null-co"}`,
	} {
		o, err := definitionOf(name)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got := string(qmp.Encode(o)); got != want {
			t.Errorf("%s is %s, want %s", name, got, want)
		}
	}
	for name, want := range map[string]string{
		"":                              "empty",
		"file:":                         "empty",
		"a\x00b":                        "zero byte",
		"http://host/disk":              "Unknown protocol 'http'",
		"odd:name":                      "file:NAME or ./NAME",
		"nbd:host:exportname=disk":      "missing port",
		"nbd://host/?colour=blue":       "'colour' is not known",
		"json:":                         "braces",
		"json:driver=raw":               "braces",
		`json:{"driver": "raw"}`:        "'file' is missing",
		`json:{"driver": "raw"`:         "not complete",
		`json:{"driver": "null-co"} {}`: "something else",
		`json:{"driver": "floppy"}`:     "floppy",
		`json:{"driver": "null-co", "colour": "blue"}`: "colour",
	} {
		if o, err := definitionOf(name); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is %+v, %v, want %q", name, o, err, want)
		}
	}
}

// FuzzDefinitionOf: options that were understood name one driver and its options, and are understood again.
func FuzzDefinitionOf(f *testing.F) {
	f.Add("nbds://host:1/disk?tls-hostname=h")
	f.Add(`json:{"driver": "raw", "file": {"driver": "file", "filename": "x"}}`)
	f.Add("file:x:y")
	f.Fuzz(func(t *testing.T, name string) {
		o, err := definitionOf(name)
		if err != nil {
			return
		}
		text := string(qmp.Encode(o))
		again, err := definitionOf("json:" + text)
		if err != nil {
			t.Fatalf("%q is %s: %v", name, text, err)
		}
		if second := string(qmp.Encode(again)); second != text {
			t.Errorf("%q is %s and then %s", name, text, second)
		}
	})
}

// TestNodesByURI opens exports by their URIs, wherever a node has a file name.
func TestNodesByURI(t *testing.T) {
	g := newGuarded(t)
	g.do("nbd-server-start", `{`+address+`}`)
	g.do("block-export-add", `{"type": "nbd", "id": "e", "node-name": "d", "name": "a b"}`)
	const uri = `"nbd+unix:///a%20b?socket=$socket"`
	g.refused("blockdev-add", `{"driver": "nbd", "node-name": "n"}`, "'server' is missing")
	g.refused("blockdev-add", `{"driver": "nbd", "node-name": "n", "uri": `+uri+`, "export": "x"}`, "'uri' and 'export' exclude")
	g.refused("blockdev-add", `{"driver": "nbd", "node-name": "n", "uri": "/a/path"}`, "is no NBD URI")
	g.refused("blockdev-add", `{"driver": "file", "node-name": "n", "filename": `+uri+`, "aio": "native"}`, "'aio' does not go with")
	g.refused("blockdev-add", `{"driver": "file", "node-name": "n", "filename": "nbd://"}`, "names no host")
	g.refused("blockdev-add", `{"driver": "file", "node-name": "n", "filename": `+uri+`}`, "read-only")
	g.do("blockdev-add", `{"driver": "nbd", "node-name": "plain", "uri": `+uri+`, "read-only": true}`)
	g.do("blockdev-add", `{"driver": "file", "node-name": "top", "filename": `+uri+`, "auto-read-only": true}`)
	g.do("blockdev-add", `{"driver": "raw", "node-name": "r", "read-only": true, "file": {"driver": "file", "node-name": "child", "filename": `+uri+`}}`)
	nodes, err := g.QueryNamedBlockNodes(t.Context(), nil)
	g.must(err)
	drivers := map[string]api.BlockDeviceInfo{}
	for _, n := range nodes {
		drivers[*n.NodeName] = n
	}
	for _, name := range []string{"plain", "top", "child"} {
		if n := drivers[name]; n.Drv != "nbd" || n.File != "nbd+unix:///a%20b?socket="+g.socket {
			t.Errorf("node '%s' is %+v", name, n)
		}
	}
	g.do("blockdev-reopen", `{"options": [{"driver": "file", "node-name": "top", "filename": `+uri+`, "auto-read-only": true, "discard": "unmap"}]}`)
	g.refused("blockdev-reopen", `{"options": [{"driver": "file", "node-name": "top", "filename": "nbd+unix:///x?socket=$socket", "auto-read-only": true}]}`, "export")
	g.refused("blockdev-reopen", `{"options": [{"driver": "file", "node-name": "top", "filename": "/a/path"}]}`, "Cannot change the option 'driver'")
	g.do("blockdev-reopen", `{"options": [{"driver": "raw", "node-name": "r", "read-only": true, "file": {"driver": "file", "node-name": "child", "filename": `+uri+`}}]}`)
}

// TestEncryptedURIs has credentials from the folder that a URI names, and from an object.
func TestEncryptedURIs(t *testing.T) {
	g := newGuarded(t)
	g.do("object-add", `{"qom-type": "tls-creds-x509", "id": "s", "dir": "$pki", "endpoint": "server"}`)
	g.do("object-add", `{"qom-type": "tls-creds-x509", "id": "c", "dir": "$pki"}`)
	g.do("nbd-server-start", `{`+address+`, "tls-creds": "s"}`)
	g.do("block-export-add", `{"type": "nbd", "id": "e", "node-name": "d"}`)
	const uri = `nbds+unix:///d?socket=$socket`
	add := func(parameters, more string) string {
		return `{"driver": "nbd", "node-name": "n", "read-only": true, "uri": "` + uri + parameters + `"` + more + `}`
	}
	g.refused("blockdev-add", add("", ""), "must have 'tls-certificates=DIR'")
	g.refused("blockdev-add", add("", `, "tls-creds": "c"`), "'tls-hostname' is missing")
	g.refused("blockdev-add", add("&tls-certificates=$pki", ""), "lacks 'tls-hostname'")
	g.refused("blockdev-add", add("&tls-certificates=$pki/none&tls-hostname=localhost", ""), "none/ca-cert.pem")
	g.refused("blockdev-add", add("&tls-certificates=$pki&tls-hostname=elsewhere", ""), "elsewhere")
	g.refused("blockdev-add", add("&tls-certificates=$pki&tls-hostname=localhost", `, "tls-creds": "c"`), "excludes parameter 'tls-creds'")
	g.refused("blockdev-add", add("&tls-verify-peer=0", `, "tls-creds": "c"`), "excludes parameter 'tls-creds'")
	g.refused("blockdev-add", `{"driver": "nbd", "node-name": "n", "read-only": true, "uri": "nbd+unix:///d?socket=$socket"}`, "TLS")
	for _, o := range []string{add("&tls-certificates=$pki&tls-hostname=localhost", ""), add("&tls-hostname=localhost", `, "tls-creds": "c"`),
		add("&tls-certificates=$pki&tls-verify-peer=0", "")} {
		g.do("blockdev-add", o)
		g.do("blockdev-del", `{"node-name": "n"}`)
	}
	// Without a certificate of its own, the client is not let in.
	g.must(os.Rename(filepath.Join(g.pki, "client-key.pem"), filepath.Join(g.pki, "away.pem")))
	g.must(os.Remove(filepath.Join(g.pki, "client-cert.pem")))
	g.refused("blockdev-add", add("&tls-certificates=$pki&tls-hostname=localhost", ""), "certificate")
}
