// SPDX-License-Identifier: Apache-2.0

package blackbox

import (
	"errors"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"
)

// stopped has a mirror in sync with a disk that qemu-nbd serves, whose process is stopped then; its host goes on to take what
// is sent. write is a guest's write of a piece, and returns how long it took.
func stopped(t *testing.T, format string) (d *daemon, server *os.Process, source, target string, write func(i int) time.Duration) {
	program, err := exec.LookPath("qemu-nbd")
	if err != nil {
		t.Skip("qemu-nbd is not installed")
	}
	d = start(t)
	const size = 64 << 20
	source, target = d.path("src.img"), d.path("dst.img")
	image(t, source, size, 1<<20, 0, size/2)
	if format == "qcow2" {
		run(t, "qemu-img", "create", "-q", "-f", "qcow2", target, "64M")
		must(t, os.Truncate(target, 2*size)) // the server's disk does not grow
	} else {
		image(t, target, size, 0)
	}
	socket := d.path("remote")
	cmd := exec.Command(program, "-t", "-f", "raw", "-e", "8", "-x", "disk", "-k", socket, target)
	must(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	eventually(t, "qemu-nbd listens", func() bool {
		_, err := os.Stat(socket)
		return err == nil
	})
	d.disk("src", source, nil)
	far := args{"driver": "nbd", "export": "disk", "server": args{"type": "unix", "path": socket}}
	if format == "qcow2" {
		far = args{"driver": "qcow2", "file": far}
	}
	far["node-name"] = "dst"
	d.do("blockdev-add", far)
	d.export("src")
	g := d.guest("src")
	d.mirror(args{"copy-mode": "write-blocking"})
	d.wait("BLOCK_JOB_READY", args{"device": "m"})
	data := make([]byte, 64<<10)
	write = func(i int) time.Duration {
		for j := range data {
			data[j] = byte(i + j/512)
		}
		began := time.Now()
		must(t, g.WriteAt(t.Context(), data, uint64(i*7919%(size/len(data))*len(data)), 0))
		if i%10 == 0 {
			must(t, g.Flush(t.Context()))
		}
		return time.Since(began)
	}
	for i := range 50 {
		write(i)
	}
	must(t, cmd.Process.Signal(syscall.SIGSTOP))
	return d, cmd.Process, source, target, write
}

// mostSilence is how long a guest may wait for a silent target, with something for a busy machine.
const mostSilence = 5 * time.Second

// A server that is stopped for a while, and whose connection lives, keeps no guest waiting; when it goes on, the mirror gets in
// sync, and completes with an equal copy.
func TestTargetProcessStopsForAWhile(t *testing.T) {
	for _, format := range []string{"raw", "qcow2"} {
		t.Run(format, func(t *testing.T) {
			d, server, source, target, write := stopped(t, format)
			late := 0
			for i, began := 50, time.Now(); time.Since(began) < 8*time.Second; i++ {
				took := write(i)
				if took > mostSilence {
					t.Errorf("a guest's write took %v", took)
				}
				if took > time.Second {
					late++
				}
			}
			if late > 1 {
				t.Errorf("%d writes waited", late)
			}
			if j := d.job(); j.ActivelySynced {
				t.Errorf("in sync with a target that is stopped: %+v", j)
			}
			must(t, server.Signal(syscall.SIGCONT))
			for i := range 20 {
				write(i)
			}
			eventually(t, "the mirror is in sync again", func() bool { return d.job().ActivelySynced })
			if j := d.job(); j.IOStatus != "ok" || j.Status != "ready" {
				t.Errorf("the job is %+v", j)
			}
			d.pivot()
			d.do("block-export-del", args{"id": "export-src", "mode": "hard"})
			d.do("blockdev-del", args{"node-name": "dst"})
			if format == "raw" {
				same(t, source, target)
				return
			}
			var exit *exec.ExitError
			if out, err := attempt(t, "qemu-img", "check", "-U", "-q", target); err != nil && !(errors.As(err, &exit) && exit.ExitCode() == 3) {
				t.Errorf("%v: %s", err, out) // 3 is for clusters that are lost, as after any write that failed
			}
			run(t, "qemu-img", "compare", "-U", "-q", "-f", "raw", "-F", "qcow2", source, target)
		})
	}
}

// A forced cancel waits neither for a server that is stopped nor for one that has been killed.
func TestForcedCancelWithStoppedTarget(t *testing.T) {
	for _, kill := range []bool{false, true} {
		d, server, source, _, write := stopped(t, "raw")
		if took := write(50); took > mostSilence {
			t.Errorf("a guest's write took %v", took)
		}
		if kill {
			must(t, server.Kill())
			for i := 51; i < 100; i++ {
				if took := write(i); took > mostSilence {
					t.Errorf("a guest's write took %v", took)
				}
			}
		}
		began := time.Now()
		if err := d.try("block-job-cancel", args{"device": "m", "force": true}); err != nil && !kill {
			t.Error(err) // the loss may have ended the job
		}
		d.wait("JOB_STATUS_CHANGE", args{"id": "m", "status": "null"})
		d.do("blockdev-del", args{"node-name": "dst"})
		if took := time.Since(began); took > mostSilence {
			t.Errorf("the end took %v", took)
		}
		write(101)
		if _, err := os.Stat(source); err != nil {
			t.Error(err)
		}
	}
}
