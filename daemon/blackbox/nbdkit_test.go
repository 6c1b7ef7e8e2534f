// SPDX-License-Identifier: Apache-2.0

package blackbox

import (
	"bytes"
	"math/rand/v2"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"
)

// nbdkit serves a file until the returned process ends. The socket is there when it returns.
func nbdkit(t *testing.T, socket, image string, arguments ...string) *exec.Cmd {
	t.Helper()
	program, pidFile := tool(t, "nbdkit"), socket+".pid"
	for _, path := range []string{socket, pidFile} {
		_ = os.Remove(path)
	}
	cmd := exec.Command(program, append([]string{"-f", "--exit-with-parent", "-P", pidFile, "-U", socket, "file", image}, arguments...)...)
	var complaints bytes.Buffer
	cmd.Stderr = &complaints
	must(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("nbdkit: %s", complaints.String())
		}
	})
	eventually(t, "nbdkit listens", func() bool { // the socket is there a moment earlier
		_, err := os.Stat(pidFile)
		return err == nil
	})
	return cmd
}

// TestMirrorToNBDKit mirrors a disk that a guest writes to servers that are slow, fail now and then, or lack one thing or
// another.
func TestMirrorToNBDKit(t *testing.T) {
	const size = 16 << 20
	for _, c := range []struct {
		name, mode string
		arguments  []string
	}{
		{"slow", "write-blocking", []string{"--filter=delay", "delay-read=2ms", "delay-write=5ms", "delay-zero=5ms", "delay-extents=5ms"}},
		{"errors", "background", []string{"--filter=error", "error=EIO", "error-pwrite-rate=10%", "error-zero-rate=10%"}},
		{"errors, write-blocking", "write-blocking", []string{"--filter=error", "error=ENOSPC", "error-pwrite-rate=10%", "error-zero-rate=10%"}},
		{"no zeroes", "background", []string{"--filter=nozero"}},
		{"no extents", "write-blocking", []string{"--filter=noextents"}},
		{"no FUA", "write-blocking", []string{"--filter=fua"}},
		{"no pages", "background", []string{"--filter=nocache"}},
		{"large blocks", "write-blocking", []string{"--filter=blocksize-policy", "blocksize-minimum=4096", "blocksize-preferred=16384",
			"blocksize-maximum=65536", "blocksize-error-policy=error"}},
		{"one connection", "background", []string{"--filter=multi-conn", "multi-conn-mode=disable"}},
		{"gone after the last client", "write-blocking", []string{"--filter=exitlast"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := start(t)
			source, target := d.path("src.img"), d.path("dst.img")
			image(t, source, size, 1<<20, 0, 5<<20, size-1<<20)
			image(t, target, size, 512<<10, 3<<20, 8<<20) // not zero
			server := nbdkit(t, d.path("kit"), target, c.arguments...)
			d.disk("src", source, args{"discard": "unmap"})
			d.export("src")
			d.do("blockdev-add", args{"driver": "file", "node-name": "dst", "discard": "unmap", "filename": "nbd+unix:///?socket=" + d.path("kit")})
			g := d.guest("src")
			d.mirror(args{"copy-mode": c.mode, "on-target-error": "ignore"})
			random := rand.New(rand.NewPCG(1, 2))
			data := make([]byte, 32<<10)
			for i := range 100 {
				for j := range data {
					data[j] = byte(i + j/512)
				}
				must(t, g.WriteAt(t.Context(), data, uint64(random.Int64N(size-int64(len(data)))), 0))
				if i%10 == 0 {
					must(t, g.Zero(t.Context(), uint64(random.Int64N(size-100000)), 100000, 0))
				}
			}
			d.wait("BLOCK_JOB_READY", args{"device": "m"})
			must(t, g.WriteAt(t.Context(), data, 777, 0))
			d.do("block-job-cancel", args{"device": "m"})
			e := d.wait("BLOCK_JOB_COMPLETED", args{"device": "m"})
			if text, failed := e.Data.Get("error"); failed {
				t.Fatalf("the mirror failed: %v", text)
			}
			d.wait("JOB_STATUS_CHANGE", args{"status": "null"})
			d.do("blockdev-del", args{"node-name": "dst"})
			if c.name == "gone after the last client" {
				must(t, server.Wait())
			}
			same(t, source, target)
		})
	}
}

// TestMirrorToNBDKitThatExits has the server of the target come to its end at a moment that nobody chose. With filter exitwhen it takes
// no more connections, and ends with the last one, which the mirror goes on with. With a signal it refuses all requests from then on.
func TestMirrorToNBDKitThatExits(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	for _, way := range []string{"exitwhen", "SIGTERM"} {
		t.Run(way, func(t *testing.T) {
			const size = 64 << 20
			d := start(t)
			source, target, socket := d.path("src.img"), d.path("dst.img"), d.path("kit")
			image(t, source, size, 8<<20, 0, size/2)
			image(t, target, size, 1<<20, 4<<20)
			server := nbdkit(t, socket, target, "--filter=exitwhen", "--filter=delay", "delay-write=1ms",
				"exit-when-file-created="+d.path("exit"), "exit-when-poll=1")
			d.disk("src", source, nil)
			d.do("blockdev-add", args{"driver": "nbd", "node-name": "dst", "uri": "nbd+unix:///?socket=" + socket, "reconnect-delay": 60,
				"connections": 4})
			d.export("src")
			g := d.guest("src")
			d.mirror(args{"copy-mode": "write-blocking", "on-target-error": "stop"})
			data, exit := make([]byte, 16<<10), random.IntN(100)
			for i := range 100 {
				switch {
				case i != exit:
				case way == "exitwhen":
					must(t, os.WriteFile(d.path("exit"), nil, 0o600))
				default:
					must(t, server.Process.Signal(syscall.SIGTERM))
				}
				for j := range data {
					data[j] = byte(i + j/512)
				}
				must(t, g.WriteAt(t.Context(), data, uint64(random.Int64N(size/512-32)*512), 0))
			}
			if way == "SIGTERM" {
				_ = server.Process.Kill() // it would wait for connections that nobody uses
				_ = server.Wait()
				server = nbdkit(t, socket, target, "--filter=exitlast")
			}
			d.wait("BLOCK_JOB_READY", args{"device": "m"})
			d.do("block-job-cancel", args{"device": "m"})
			e := d.wait("BLOCK_JOB_COMPLETED", args{"device": "m"})
			if text, failed := e.Data.Get("error"); failed {
				t.Fatalf("the mirror failed: %v", text)
			}
			d.wait("JOB_STATUS_CHANGE", args{"status": "null"})
			d.do("blockdev-del", args{"node-name": "dst"})
			must(t, server.Wait())
			same(t, source, target)
		})
	}
}

// TestMirrorToNBDKitThatIsKilled kills the server of the target at moments that nobody chose, and starts it again.
func TestMirrorToNBDKitThatIsKilled(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	for _, mode := range []string{"write-blocking", "background"} {
		t.Run(mode, func(t *testing.T) {
			const size = 64 << 20
			d := start(t)
			source, target, socket := d.path("src.img"), d.path("dst.img"), d.path("kit")
			image(t, source, size, 8<<20, 0, size/2)
			image(t, target, size, 1<<20, 4<<20)
			server := nbdkit(t, socket, target, "--filter=delay", "delay-write=1ms")
			d.disk("src", source, nil)
			d.do("blockdev-add", args{"driver": "nbd", "node-name": "dst", "uri": "nbd+unix:///?socket=" + socket, "reconnect-delay": 60})
			d.export("src")
			g := d.guest("src")
			d.mirror(args{"copy-mode": mode, "on-target-error": "stop"})
			data := make([]byte, 16<<10)
			for range 4 {
				for n := random.IntN(60); n >= 0; n-- {
					for j := range data {
						data[j] = byte(n + j/512)
					}
					must(t, g.WriteAt(t.Context(), data, uint64(random.Int64N(size/512-32)*512), 0))
				}
				_ = server.Process.Kill()
				_ = server.Wait()
				must(t, g.WriteAt(t.Context(), data, uint64(random.Int64N(size/512-32)*512), 0))
				must(t, g.Flush(t.Context()))
				server = nbdkit(t, socket, target)
			}
			d.wait("BLOCK_JOB_READY", args{"device": "m"})
			d.do("block-job-cancel", args{"device": "m"})
			e := d.wait("BLOCK_JOB_COMPLETED", args{"device": "m"})
			if text, failed := e.Data.Get("error"); failed {
				t.Fatalf("the mirror failed: %v", text)
			}
			d.wait("JOB_STATUS_CHANGE", args{"status": "null"})
			same(t, source, target)
		})
	}
}

// TestTLSFallback has a server that shows those who come without TLS a small disk that says so, in place of the real one.
func TestTLSFallback(t *testing.T) {
	pki := credentialsFor(t, "localhost")
	d := start(t)
	image(t, d.path("dst.img"), 1<<20, 0)
	socket := d.path("kit")
	nbdkit(t, socket, d.path("dst.img"), "--tls=on", "--tls-certificates="+pki, "--tls-verify-peer", "--filter=tls-fallback")
	plain := args{"driver": "nbd", "node-name": "dst", "uri": "nbd+unix:///?socket=" + socket}
	d.refused("blockdev-add", plain, "read-only")
	plain["read-only"] = true
	d.do("blockdev-add", plain)
	var nodes []struct {
		Image struct {
			VirtualSize int64 `json:"virtual-size"`
		}
	}
	must(t, d.query("query-named-block-nodes", nil, &nodes))
	if nodes[0].Image.VirtualSize != 512 {
		t.Errorf("without TLS the disk has %d bytes", nodes[0].Image.VirtualSize)
	}
	d.do("blockdev-del", args{"node-name": "dst"})
	d.do("blockdev-add", args{"driver": "file", "node-name": "dst", "filename": "nbds+unix:///?socket=" + socket +
		"&tls-hostname=localhost&tls-certificates=" + pki})
	image(t, d.path("src.img"), 1<<20, 300<<10, 5000)
	d.disk("src", d.path("src.img"), nil)
	d.mirror(nil)
	d.wait("BLOCK_JOB_READY", args{"device": "m"})
	d.do("block-job-cancel", args{"device": "m"})
	d.wait("JOB_STATUS_CHANGE", args{"status": "null"})
	same(t, d.path("src.img"), d.path("dst.img"))
}
