// SPDX-License-Identifier: Apache-2.0

package blackbox

import (
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/blkmirror/blkmirror/qmp/client"
)

// activated starts a daemon with the listening sockets "nbd" and "qmp" of a folder, which somebody else made, as systemd does. They
// are its descriptors 3 and 4, and have the names disks and qmp.
func activated(t *testing.T, dir string, options ...string) (cmd *exec.Cmd, said *output) {
	t.Helper()
	cmd, said = exec.Command("sh", append([]string{"-c", `LISTEN_PID=$$ LISTEN_FDS=2 LISTEN_FDNAMES=disks:qmp exec "$@"`, "sh", program},
		options...)...), &output{}
	for _, name := range []string{"nbd", "qmp"} {
		l, err := net.Listen("unix", dir+"/"+name)
		must(t, err)
		f, err := l.(*net.UnixListener).File()
		must(t, err)
		defer f.Close()
		l.(*net.UnixListener).SetUnlinkOnClose(false)
		must(t, l.Close())
		cmd.ExtraFiles = append(cmd.ExtraFiles, f)
	}
	cmd.Stdout, cmd.Stderr = said, said
	must(t, cmd.Start())
	t.Cleanup(func() {
		if t.Failed() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
			t.Logf("daemon: %s", said.String())
		}
	})
	return cmd, said
}

// ends tells a daemon to end, and sees to it that it does so in good order.
func ends(t *testing.T, cmd *exec.Cmd, said *output) {
	t.Helper()
	must(t, cmd.Process.Signal(syscall.SIGTERM))
	late := time.AfterFunc(patience, func() { _ = cmd.Process.Signal(syscall.SIGQUIT) }) // prints where it hangs
	defer late.Stop()
	if err := cmd.Wait(); err != nil {
		t.Errorf("the daemon ended with %v: %s", err, said.String())
	}
}

// TestSocketActivation has clients that come before the daemon wait until its command line is carried out: none is told that
// there is no such export.
func TestSocketActivation(t *testing.T) {
	dir, far := folder(t), start(t, "--blockdev", "null-co,node-name=r,size=1048576", "--export", "nbd,id=r,node-name=r")
	slow, err := net.Listen("unix", dir+"/slow")
	must(t, err)
	defer slow.Close()
	cmd, said := activated(t, dir, "--chardev", "socket,id=c,fd=qmp,server=on,wait=off", "--monitor", "c",
		"--nbd-server", "addr.type=fd,addr.str=disks", "--blockdev", "null-co,node-name=d,size=1048576,read-zeroes=on",
		"--blockdev", "nbd,node-name=r,read-only=on,export=r,server.type=unix,server.path="+dir+"/slow", "--export", "nbd,id=e,node-name=d")
	early := map[string]net.Conn{}
	for _, name := range []string{"nbd", "qmp"} {
		early[name], err = net.Dial("unix", dir+"/"+name)
		must(t, err)
		defer early[name].Close()
	}
	// The daemon has both sockets now, and cannot go on before it has its answer from afar.
	asks, err := slow.Accept()
	must(t, err)
	for name, c := range early {
		must(t, c.SetReadDeadline(time.Now().Add(100*time.Millisecond)))
		if n, err := c.Read(make([]byte, 100)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: a client is served before there are exports: %d bytes, %v", name, n, err)
		}
	}
	answers, err := net.Dial("unix", far.path("nbd"))
	must(t, err)
	done := make(chan struct{}, 2)
	for _, way := range [][2]net.Conn{{asks, answers}, {answers, asks}} {
		go func() {
			_, _ = io.Copy(way[0], way[1])
			_ = way[0].Close()
			done <- struct{}{}
		}()
	}
	d := &daemon{t: t, dir: dir}
	g := d.guest("d")
	data := []byte{1}
	must(t, g.ReadAt(t.Context(), data, 0))
	if data[0] != 0 {
		t.Error("another content")
	}
	must(t, early["qmp"].SetReadDeadline(time.Time{}))
	d.client, err = client.New(t.Context(), early["qmp"], client.Options{})
	must(t, err)
	var exports []any
	if err := d.query("query-block-exports", nil, &exports); err != nil || len(exports) != 1 {
		t.Errorf("%d exports, %v", len(exports), err)
	}
	must(t, d.client.Close())
	ends(t, cmd, said)
	<-done
	<-done
	for _, name := range []string{"nbd", "qmp"} {
		if _, err := os.Stat(dir + "/" + name); err != nil {
			t.Errorf("the socket belongs to who made it: %v", err)
		}
	}
}

// TestStopWhileStarting tells the daemon to end while its command line waits for another host.
func TestStopWhileStarting(t *testing.T) {
	dir := folder(t)
	slow, err := net.Listen("unix", dir+"/slow")
	must(t, err)
	defer slow.Close()
	cmd, said := activated(t, dir, "--chardev", "socket,id=c,fd=4,server=on,wait=off", "--monitor", "c",
		"--blockdev", "nbd,node-name=r,open-timeout=3600,server.type=unix,server.path="+dir+"/slow")
	c, err := net.Dial("unix", dir+"/qmp")
	must(t, err)
	defer c.Close()
	silent, err := slow.Accept()
	must(t, err)
	defer silent.Close()
	ends(t, cmd, said)
	if n, err := c.Read(make([]byte, 100)); n > 0 || err == nil {
		t.Errorf("the daemon greeted a client: %d bytes, %v", n, err)
	}
}
