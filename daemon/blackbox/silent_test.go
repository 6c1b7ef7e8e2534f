// SPDX-License-Identifier: Apache-2.0

package blackbox

import (
	"context"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/blkmirror/blkmirror/qmp/client"
)

// silence is a server that takes connections and says nothing, until the test ends or hang up is called.
func silence(t *testing.T, socket string) (came <-chan struct{}, hangUp func()) {
	t.Helper()
	l, err := net.Listen("unix", socket)
	must(t, err)
	arrived, ended := make(chan struct{}, 1), make(chan struct{})
	var conns []net.Conn
	go func() {
		defer close(ended)
		for {
			c, err := l.Accept()
			if err != nil {
				break
			}
			conns = append(conns, c)
			arrived <- struct{}{}
		}
		for _, c := range conns {
			_ = c.Close()
		}
	}()
	hangUp = func() {
		_ = l.Close()
		<-ended
	}
	t.Cleanup(hangUp)
	return arrived, hangUp
}

// adding has a second monitor add a node, whose server keeps it waiting.
func adding(t *testing.T, d *daemon, socket string) <-chan error {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	t.Cleanup(cancel)
	second, err := client.Dial(ctx, "unix", d.path("qmp"), client.Options{})
	must(t, err)
	t.Cleanup(func() { _ = second.Close() })
	result := make(chan error, 1)
	go func() {
		result <- second.Execute(ctx, "blockdev-add", args{"driver": "raw", "node-name": "far", "file": args{"driver": "nbd",
			"server": args{"type": "unix", "path": socket}}}, nil)
	}()
	return result
}

// TestSilentServer: while one monitor waits for another host, the other one, guests and jobs go on.
func TestSilentServer(t *testing.T) {
	d, _ := exportedImage(t)
	g := d.guest("src")
	came, hangUp := silence(t, d.path("silent"))
	result := adding(t, d, d.path("silent"))
	<-came
	began := time.Now()
	d.alive()
	must(t, g.WriteAt(t.Context(), make([]byte, 4096), 0, 0))
	d.do("blockdev-add", args{"driver": "null-co", "node-name": "dst", "size": 8 << 20})
	d.mirror(nil)
	d.wait("BLOCK_JOB_READY", args{"device": "m"})
	d.do("job-complete", args{"id": "m"})
	d.wait("JOB_STATUS_CHANGE", args{"id": "m", "status": "null"})
	must(t, g.WriteAt(t.Context(), make([]byte, 4096), 0, 0))
	d.do("blockdev-add", args{"driver": "null-co", "node-name": "near", "size": 8 << 20})
	select {
	case err := <-result:
		t.Fatalf("the other command did not wait: %v after %v", err, time.Since(began))
	default:
	}
	hangUp()
	if err := <-result; err == nil || !strings.Contains(err.Error(), "gave no greeting") {
		t.Errorf("the other command ended with %v", err)
	}
	d.do("blockdev-del", args{"node-name": "near"})
}

// TestNameTakenMeanwhile: two monitors make a node of the same name, and the one that waited is refused.
func TestNameTakenMeanwhile(t *testing.T) {
	far, _ := exportedImage(t)
	d := start(t)
	proxied := d.path("proxy")
	l, err := net.Listen("unix", proxied)
	must(t, err)
	t.Cleanup(func() { _ = l.Close() })
	must(t, l.(*net.UnixListener).SetDeadline(time.Now().Add(patience)))
	result := make(chan error, 1)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	second, err := client.Dial(ctx, "unix", d.path("qmp"), client.Options{})
	must(t, err)
	defer second.Close()
	go func() {
		result <- second.Execute(ctx, "blockdev-add", args{"driver": "file", "node-name": "n",
			"filename": "nbd+unix:///src?socket=" + proxied}, nil)
	}()
	c, err := l.Accept()
	must(t, err)
	d.do("blockdev-add", args{"driver": "null-co", "node-name": "n"})
	server, err := net.Dial("unix", far.path("nbd"))
	must(t, err)
	join(t, c, server)
	if err := <-result; err == nil || !strings.Contains(err.Error(), "Duplicate nodes") {
		t.Errorf("the second node of the name: %v", err)
	}
	d.do("blockdev-del", args{"node-name": "n"})
}

// TestStopWhileConnecting: a daemon that waits for another host ends at once when it is told to.
func TestStopWhileConnecting(t *testing.T) {
	for name, stop := range map[string]func(d *daemon){
		"SIGTERM": func(d *daemon) { _ = syscall.Kill(d.pid, syscall.SIGTERM) },
		"quit":    func(d *daemon) { d.do("quit", nil) },
	} {
		t.Run(name, func(t *testing.T) {
			d := start(t)
			came, _ := silence(t, d.path("silent"))
			result := adding(t, d, d.path("silent"))
			<-came
			began := time.Now()
			stop(d)
			<-d.exited
			if took := time.Since(began); took > 5*time.Second {
				t.Errorf("it took %v", took)
			}
			if err := <-result; err == nil {
				t.Error("a node was added")
			}
		})
	}
}

// join passes everything on between two connections, until one of them ends.
func join(t *testing.T, a, b net.Conn) {
	t.Helper()
	ended := make(chan struct{}, 2)
	pass := func(to, from net.Conn) {
		_, _ = io.Copy(to, from)
		_, _ = to.Close(), from.Close()
		ended <- struct{}{}
	}
	go pass(a, b)
	go pass(b, a)
	t.Cleanup(func() {
		_, _ = a.Close(), b.Close()
		<-ended
		<-ended
	})
}
