// SPDX-License-Identifier: Apache-2.0

package blackbox

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestServiceManager has a daemon tell its service manager that it is ready when its sockets are there, that it is well, what it does,
// and that it ends.
func TestServiceManager(t *testing.T) {
	dir := folder(t)
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: dir + "/notify", Net: "unixgram"})
	must(t, err)
	defer manager.Close()
	t.Setenv("NOTIFY_SOCKET", dir+"/notify")
	t.Setenv("WATCHDOG_USEC", "200000")
	next := func() string {
		t.Helper()
		must(t, manager.SetReadDeadline(time.Now().Add(patience)))
		p := make([]byte, 4096)
		n, err := manager.Read(p)
		must(t, err)
		return string(p[:n])
	}
	d := launch(t, dir, "--nbd-server", "addr.type=unix,addr.path=nbd", "--blockdev", "null-co,node-name=n", "--export", "nbd,id=e,node-name=n",
		"--qmp", dir+"/qmp")
	if said := next(); said != "READY=1\nSTATUS=1 export, 0 clients" {
		t.Errorf("at first: %q", said)
	}
	for _, socket := range []string{"nbd", "qmp"} {
		if _, err := os.Stat(filepath.Join(dir, socket)); err != nil {
			t.Errorf("when it is ready: %v", err)
		}
	}
	for range 3 {
		if said := next(); !strings.HasPrefix(said, "WATCHDOG=1") {
			t.Errorf("then: %q", said)
		}
	}
	d.connect()
	d.do("blockdev-add", args{"driver": "null-co", "node-name": "a"})
	d.do("blockdev-add", args{"driver": "null-co", "node-name": "b"})
	d.do("blockdev-mirror", args{"job-id": "m", "device": "a", "target": "b", "sync": "full"})
	eventually(t, "the status has the mirror", func() bool { return strings.Contains(next(), "mirror m ") })
	d.do("quit", nil)
	eventually(t, "it says that it ends", func() bool { return strings.HasPrefix(next(), "STOPPING=1") })
}
