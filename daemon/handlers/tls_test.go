// SPDX-License-Identifier: Apache-2.0

package handlers

import (
	"context"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/blkmirror/blkmirror/block/export/nbdserver"
	"github.com/blkmirror/blkmirror/daemon/credentials"
	"github.com/blkmirror/blkmirror/qmp"
)

// guarded is a daemon's handlers with a directory of credentials.
type guarded struct {
	*testing.T
	*Handlers
	pki, socket string
	ended       chan error // how NBD connections ended
}

func newGuarded(t *testing.T) *guarded {
	g := &guarded{T: t, pki: t.TempDir(), socket: filepath.Join(t.TempDir(), "nbd"), ended: make(chan error, 100)}
	g.Handlers = New(Config{Emit: func(qmp.Event) {}, NBD: nbdserver.Events{Closed: func(_ nbdserver.Conn, err error) { g.ended <- err }}})
	t.Cleanup(func() {
		if err := g.Close(context.Background(), 0); err != nil {
			t.Error(err)
		}
	})
	a, err := credentials.NewAuthority(g.pki, "Test CA", time.Hour, false)
	g.must(err)
	_, err = a.Issue(g.pki, credentials.Request{Server: true, Name: "localhost", Hosts: []string{"localhost"}, ValidFor: time.Hour})
	g.must(err)
	_, err = a.Issue(g.pki, credentials.Request{Name: "client", Organization: "Example Org", ValidFor: time.Hour})
	g.must(err)
	g.do("blockdev-add", `{"driver": "null-co", "node-name": "d", "size": 1048576, "read-zeroes": true}`)
	return g
}

func (g *guarded) must(err error) {
	g.Helper()
	if err != nil {
		g.Fatal(err)
	}
}

// try carries out a command; $pki and $socket stand for paths.
func (g *guarded) try(command, arguments string) error {
	g.Helper()
	_, err := g.ask(command, arguments)
	return err
}

func (g *guarded) ask(command, arguments string) (any, error) {
	g.Helper()
	text := strings.NewReplacer("$pki", g.pki, "$socket", g.socket).Replace(arguments) + "\n"
	value, err := qmp.NewReader(strings.NewReader(text)).Next()
	g.must(err)
	return g.Dispatch(context.Background(), command, value.(*qmp.Object))
}

func (g *guarded) do(command, arguments string) {
	g.Helper()
	g.must(g.try(command, arguments))
}

func (g *guarded) refused(command, arguments, want string) {
	g.Helper()
	if err := g.try(command, arguments); err == nil || !strings.Contains(err.Error(), want) {
		g.Errorf("%s %s: error is %v, want %q", command, arguments, err, want)
	}
}

const address = `"addr": {"type": "unix", "data": {"path": "$socket"}}`

func TestTLSObjects(t *testing.T) {
	g := newGuarded(t)
	g.refused("object-add", `{"qom-type": "tls-creds-psk", "id": "p", "dir": "$pki"}`, "not available")
	g.refused("object-add", `{"qom-type": "tls-creds-anon", "id": "p"}`, "not available")
	g.refused("object-add", `{"qom-type": "tls-creds-x509", "id": "c"}`, "Missing 'dir'")
	g.refused("object-add", `{"qom-type": "tls-creds-x509", "id": "c", "dir": "$pki/none"}`, "none/ca-cert.pem: no such file")
	g.refused("object-add", `{"qom-type": "tls-creds-x509", "id": "c", "dir": "$pki", "priority": "SECURE256"}`, "priority")
	g.refused("object-add", `{"qom-type": "tls-creds-x509", "id": "c", "dir": "$pki", "passwordid": "s"}`, "passwordid")
	g.do("object-add", `{"qom-type": "tls-creds-x509", "id": "c", "dir": "$pki", "priority": "NORMAL"}`)
	g.do("object-add", `{"qom-type": "tls-creds-x509", "id": "s", "dir": "$pki", "endpoint": "server", "verify-peer": false}`)
	g.do("object-add", `{"qom-type": "authz-simple", "id": "a", "identity": "x"}`)
	g.do("object-add", `{"qom-type": "authz-list", "id": "l", "policy": "allow", "rules": [{"match": "x", "policy": "deny", "format": "glob"}]}`)
	for _, test := range []struct{ arguments, want string }{
		{`"tls-creds": "none"`, "No TLS credentials with id 'none'"}, {`"tls-creds": "a"`, "Object with id 'a' is not TLS credentials"},
		{`"tls-creds": "c"`, "Expecting TLS credentials with a server endpoint"}, {`"tls-authz": "a"`, "needs 'tls-creds'"},
		{`"tls-creds": "s", "tls-authz": "a"`, "verify-peer=off"},
	} {
		g.refused("nbd-server-start", "{"+address+", "+test.arguments+"}", test.want)
	}
	for path, want := range map[string]any{"c.endpoint": "client", "s.endpoint": "server", "s.verify-peer": false, "c.verify-peer": true, "a.identity": "x",
		"l.policy": "allow", "c.type": "tls-creds-x509", "c.dir": g.pki} {
		id, name, _ := strings.Cut(path, ".")
		if got, err := g.ask("qom-get", `{"path": "/objects/`+id+`", "property": "`+name+`"}`); err != nil || string(qmp.Encode(got)) != string(qmp.Encode(want)) {
			t.Errorf("%s is %s, %v; want %v", path, qmp.Encode(got), err, want)
		}
	}
	g.refused("qom-set", `{"path": "/objects/a", "property": "identity", "value": "y"}`, "not writable")

	if _, err := g.clientTLS("s", "localhost"); err == nil || !strings.Contains(err.Error(), "with a client endpoint") {
		t.Errorf("error is %v", err)
	}
	if _, err := g.clientTLS("c", ""); err == nil || !strings.Contains(err.Error(), "tls-hostname") {
		t.Errorf("error is %v", err)
	}
	if config, err := g.clientTLS("c", "localhost"); err != nil || config.ServerName != "localhost" || len(config.Certificates) != 1 {
		t.Errorf("%+v, %v", config, err)
	}
}

// nbdinfo runs libnbd's program with the credentials, or without for "nbd+unix".
func (g *guarded) nbdinfo(scheme string) (string, error) {
	g.Helper()
	if _, err := exec.LookPath("nbdinfo"); err != nil {
		g.Skip("nbdinfo is not installed")
	}
	ctx, cancel := context.WithTimeout(g.Context(), 10*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "nbdinfo", scheme+"://localhost/d?socket="+g.socket+"&tls-certificates="+g.pki)
	cmd.Dir = g.TempDir()
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func TestTLSServer(t *testing.T) {
	g := newGuarded(t)
	g.do("object-add", `{"qom-type": "tls-creds-x509", "id": "s", "dir": "$pki", "endpoint": "server"}`)
	g.do("object-add", `{"qom-type": "authz-simple", "id": "a", "identity": "O=Example Org,CN=client"}`)
	start := "{" + address + `, "tls-creds": "s", "tls-authz": "a"}`
	serve := func() {
		g.do("nbd-server-start", start)
		g.do("block-export-add", `{"type": "nbd", "id": "e", "node-name": "d"}`)
	}
	serve()
	if out, err := g.nbdinfo("nbd+unix"); err == nil {
		t.Errorf("a client without TLS sees\n%s", out)
	}
	<-g.ended
	if out, err := g.nbdinfo("nbds+unix"); err != nil || !strings.Contains(out, "with TLS") {
		t.Errorf("a client with TLS sees %v\n%s", err, out)
	}
	<-g.ended
	if _, err := exec.LookPath("qemu-img"); err == nil {
		ctx, cancel := context.WithTimeout(g.Context(), 10*time.Second)
		defer cancel()
		out, err := exec.CommandContext(ctx, "qemu-img", "info", "--object", "tls-creds-x509,id=t,endpoint=client,dir="+g.pki, "--image-opts",
			"driver=nbd,export=d,tls-creds=t,server.type=unix,server.path="+g.socket+",tls-hostname=localhost").CombinedOutput()
		if err != nil || !strings.Contains(string(out), "1 MiB") {
			t.Errorf("qemu-img says %v\n%s", err, out)
		}
		<-g.ended
	} else {
		t.Log("qemu-img is not installed: not tried")
	}
	denied := func(want string) {
		t.Helper()
		if out, err := g.nbdinfo("nbds+unix"); err == nil {
			t.Errorf("a client that is not meant to come in sees\n%s", out)
		}
		if err := <-g.ended; err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("the connection ended with %v, want %q", err, want)
		}
	}
	// The object is asked when a client comes; the credentials are the server's own.
	g.do("object-del", `{"id": "a"}`)
	g.do("object-del", `{"id": "s"}`)
	denied("'O=Example Org,CN=client': there is no object 'a'")
	g.do("object-add", `{"qom-type": "authz-list", "id": "a", "policy": "allow", "rules": [{"match": "*CN=client", "policy": "deny", "format": "glob"}]}`)
	denied("'O=Example Org,CN=client': denied by 'a'")
	g.do("object-del", `{"id": "a"}`)
	g.do("object-add", `{"qom-type": "authz-list", "id": "a"}`)
	denied("denied by 'a'")
	g.do("nbd-server-stop", `{}`)
	g.refused("nbd-server-start", start, "No TLS credentials with id 's'")
}
