// SPDX-License-Identifier: Apache-2.0

package blackbox

import (
	"os/exec"
	"path/filepath"
	"testing"
)

// credentialsFor has the client make an authority, and certificates for a server and a client.
func credentialsFor(t *testing.T, host string) (dir string) {
	t.Helper()
	dir = filepath.Join(folder(t), "pki")
	made := exec.Command("go", "run", "../../cmd/blkmirror", "tls", "init", dir, "--host", host)
	if text, err := made.CombinedOutput(); err != nil {
		t.Fatalf("blkmirror tls init: %v\n%s", err, text)
	}
	return dir
}

// TestMirrorOverTLS mirrors from one daemon to another one, with certificates that the client made.
func TestMirrorOverTLS(t *testing.T) {
	pki := credentialsFor(t, "localhost")
	far := start(t)
	far.do("nbd-server-stop", nil)
	far.do("object-add", args{"qom-type": "tls-creds-x509", "id": "tls", "endpoint": "server", "dir": pki,
		"verify-peer": true})
	far.do("nbd-server-start", args{"addr": args{"type": "unix", "data": args{"path": far.path("nbd")}}, "tls-creds": "tls"})
	image(t, far.path("dst.img"), 16<<20, 0)
	far.disk("dst", far.path("dst.img"), nil)
	far.export("dst")

	d := start(t)
	image(t, d.path("src.img"), 16<<20, 1<<20, 0, 8<<20)
	d.disk("src", d.path("src.img"), nil)
	d.export("src")
	server := args{"type": "unix", "path": far.path("nbd")}
	d.refused("blockdev-add", args{"driver": "nbd", "node-name": "dst", "export": "dst", "server": server}, "TLS")
	d.do("object-add", args{"qom-type": "tls-creds-x509", "id": "tls", "endpoint": "client", "dir": pki})
	d.refused("blockdev-add", args{"driver": "nbd", "node-name": "dst", "export": "dst", "server": server, "tls-creds": "tls",
		"tls-hostname": "elsewhere"}, "elsewhere")
	d.do("blockdev-add", args{"driver": "nbd", "node-name": "dst", "export": "dst", "server": server, "tls-creds": "tls",
		"tls-hostname": "localhost"})
	d.mirror(args{"copy-mode": "write-blocking"})
	d.wait("BLOCK_JOB_READY", args{"device": "m"})
	must(t, d.guest("src").WriteAt(t.Context(), make([]byte, 70000), 12345, 0))
	d.do("block-job-cancel", args{"device": "m"})
	d.wait("JOB_STATUS_CHANGE", args{"status": "null"})
	same(t, d.path("src.img"), far.path("dst.img"))
}
