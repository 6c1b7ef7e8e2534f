// SPDX-License-Identifier: Apache-2.0

package blackbox

import (
	"crypto/tls"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/blkmirror/blkmirror/daemon/credentials"
	"github.com/blkmirror/blkmirror/qmp/client"
)

// asUser has another user connect to a socket, and returns what that one reads.
func asUser(t *testing.T, uid, gid uint32, socket string) string {
	t.Helper()
	cmd := exec.Command(tool(t, "socat"), "-u", "-T", "5", "UNIX-CONNECT:"+socket, "STDOUT,end-close")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: gid}}
	var said output
	cmd.Stdout, cmd.Stderr = &said, &said
	must(t, cmd.Start())
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	deadline := time.After(patience)
	again := time.NewTicker(5 * time.Millisecond)
	defer again.Stop()
	for {
		select {
		case <-ended:
			return said.String()
		case <-deadline:
			_ = cmd.Process.Kill()
			<-ended
			t.Fatalf("user %d: neither let in nor kept out: %s", uid, said.String())
		case <-again.C:
			if strings.Contains(said.String(), "QMP") || strings.Contains(said.String(), "NBDMAGIC") {
				_ = cmd.Process.Kill()
				<-ended
				return said.String()
			}
		}
	}
}

// Who may connect is what mode, group and allow-uids say.
func TestWhoMayConnect(t *testing.T) {
	needRoot(t)
	const nobody, other, group = 65534, 65533, 65532
	dir := folder(t)
	must(t, os.Chmod(dir, 0o711))
	d := launch(t, dir, "--qmp", dir+"/qmp",
		"--qmp", dir+"/group,mode=0660,group=65532",
		"--chardev", "socket,id=c,path="+dir+"/uids,server=on,wait=off,mode=0666,allow-uids.0=65534,allow-uids.1=0", "--monitor", "c",
		"--nbd-server", "addr.type=unix,addr.path="+dir+"/nbd,addr.mode=0666,addr.allow-uids.0=65534")
	d.connect()
	for _, c := range []struct {
		socket   string
		uid, gid uint32
		in       bool
	}{
		{"qmp", 0, 0, true}, {"qmp", nobody, nobody, false},
		{"group", nobody, group, true}, {"group", nobody, other, false},
		{"uids", 0, 0, true}, {"uids", nobody, nobody, true}, {"uids", other, other, false},
		{"nbd", nobody, nobody, true}, {"nbd", other, other, false}, {"nbd", 0, 0, false},
	} {
		said := asUser(t, c.uid, c.gid, d.path(c.socket))
		if in := strings.Contains(said, "QMP") || strings.Contains(said, "NBDMAGIC"); in != c.in {
			t.Errorf("user %d, group %d at %s: let in is %v: %s", c.uid, c.gid, c.socket, in, said)
		}
	}
	if info, err := os.Stat(d.path("group")); err != nil || info.Mode().Perm() != 0o660 || info.Sys().(*syscall.Stat_t).Gid != group {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if said := d.stderr.String(); !strings.Contains(said, "user 65533") {
		t.Errorf("it did not say whom it refused: %s", said)
	}
	d.refused("nbd-server-start", args{"addr": args{"type": "unix", "data": args{"path": d.path("x"), "mode": "0777"}}}, "already running")
	d.do("nbd-server-stop", nil)
	d.refused("nbd-server-start", args{"addr": args{"type": "unix", "data": args{"path": d.path("x"), "mode": "0777"}}}, "mode", "0777")
	d.refused("nbd-server-start", args{"addr": args{"type": "unix", "data": args{"path": "x", "abstract": true, "mode": "0660"}}}, "abstract")
	d.do("nbd-server-start", args{"addr": args{"type": "unix", "data": args{"path": d.path("x"), "mode": "0666", "group": "65532"}}})
	if info, err := os.Stat(d.path("x")); err != nil || info.Mode().Perm() != 0o666 || info.Sys().(*syscall.Stat_t).Gid != group {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	d.refused("blockdev-add", args{"driver": "nbd", "node-name": "n", "server": args{"type": "unix", "path": d.path("x"), "mode": "0600"}},
		"server.mode")
}

// A monitor on TCP is there with certificates, or for this host alone when that is asked for.
func TestMonitorOnTCP(t *testing.T) {
	dir := folder(t)
	for options, words := range map[string][]string{
		"host=127.0.0.1":                            {"tls-creds", "loopback=on", "path"},
		"host=0.0.0.0,loopback=on":                  {"only this host can reach", "tls-creds"},
		"host=::,loopback=on":                       {"only this host can reach"},
		"host=127.0.0.1,tls-authz=a":                {"tls-creds"},
		"host=127.0.0.1,tls-creds=none":             {"none"},
		"host=127.0.0.1,loopback=on,allow-uids.0=0": {"allow-uids", "tls-authz"},
		"host=127.0.0.1,loopback=on,mode=0600":      {"mode", "path"},
	} {
		said := fails(t, dir, "--chardev", "socket,id=c,port=0,server=on,wait=off,"+options)
		for _, w := range words {
			if !strings.Contains(said, w) {
				t.Errorf("%s: %q is not in: %s", options, w, said)
			}
		}
	}
	said := fails(t, dir, "--qmp", dir+"/qmp,loopback=on")
	if !strings.Contains(said, "for TCP") {
		t.Errorf("it said: %s", said)
	}

	port := freePort(t)
	d := launch(t, dir, "--chardev", "socket,id=c,host=127.0.0.1,port="+port+",server=on,wait=off,loopback=on", "--monitor", "c",
		"--qmp", dir+"/qmp")
	d.connect()
	c, err := client.Dial(t.Context(), "tcp", "127.0.0.1:"+port, client.Options{})
	must(t, err)
	must(t, c.Execute(t.Context(), "query-version", nil, nil))
	must(t, c.Close())
}

func TestMonitorOverTLS(t *testing.T) {
	pki := credentialsFor(t, "localhost")
	dir, port := folder(t), freePort(t)
	creds := "tls-creds-x509,id=tls,endpoint=server,dir=" + pki
	chardev := "socket,id=c,host=127.0.0.1,port=" + port + ",server=on,wait=off,tls-creds=tls,tls-authz=who"
	if said := fails(t, dir, "--object", creds+",verify-peer=off", "--object", "authz-simple,id=who,identity=x", "--chardev", chardev); !strings.Contains(said, "verify-peer") {
		t.Errorf("without certificates of clients it said: %s", said)
	}
	d := launch(t, dir, "--object", creds, "--chardev", chardev, "--monitor", "c", "--qmp", dir+"/qmp")
	d.connect()
	own, err := credentials.Load(credentials.Options{Dir: pki, VerifyPeer: true, SanityCheck: true})
	must(t, err)
	try := func(config *tls.Config) error {
		conn, err := tls.Dial("tcp", "127.0.0.1:"+port, config)
		if err != nil {
			return err
		}
		c, err := client.New(t.Context(), conn, client.Options{})
		if err != nil {
			return err
		}
		defer c.Close()
		return c.Execute(t.Context(), "query-version", nil, nil)
	}
	if err := try(own.Client("localhost")); err == nil {
		t.Error("it took a client without an object that lets it in")
	}
	d.do("object-add", args{"qom-type": "authz-list", "id": "who", "policy": "deny",
		"rules": []any{args{"match": "*", "format": "glob", "policy": "allow"}}})
	must(t, try(own.Client("localhost")))
	stranger := own.Client("localhost")
	stranger.Certificates = nil
	if err := try(stranger); err == nil {
		t.Error("it took a client without a certificate")
	}
	conn, err := net.Dial("tcp", "127.0.0.1:"+port) // one that says nothing
	must(t, err)
	defer conn.Close()
	d.alive()
}

// freePort is a port that nobody listened on just now.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	must(t, err)
	return port
}
