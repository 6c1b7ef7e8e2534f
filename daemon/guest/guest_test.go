// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/blkmirror/blkmirror/daemon/guest/internal/workload"
)

var seedFlag = flag.Uint64("guest.seed", 0, "what the guest writes follows from this number; 0 takes the time")

const (
	diskBytes = 128 << 20
	// slow is the speed of a mirror that is to have the guest beside it for a while, in bytes per second.
	slow = 16 << 20
	// bound is how long all of it may take, with two starts of the guest.
	bound = 2 * time.Minute
	// groups is how many groups the guest must flush in each phase.
	groups = 30
)

// TestGuestMovesTwice moves the disk of a guest that writes, first to another file and then to another daemon, in both copy
// modes each way. One guest ends in good order, the other is killed.
func TestGuestMovesTwice(t *testing.T) {
	if os.Getenv("BLKMIRROR_INTEROP") == "" {
		t.Skip("a virtual machine takes a minute; make interop runs it (BLKMIRROR_INTEROP=1)")
	}
	if _, err := exec.LookPath(emulator); err != nil {
		t.Skipf("%s is not installed", emulator)
	}
	k := needKernel(t)
	dir := folder(t)
	program := os.Getenv("BLKMIRROR_DAEMON")
	if program == "" {
		program = build(t, dir, "blkmirrord", "cmd/blkmirrord")
	}
	initrd := filepath.Join(dir, "initramfs")
	must(t, os.WriteFile(initrd, initramfs(t, build(t, dir, "init", "daemon/guest/internal/init"), k.modules), 0o600))
	seed := *seedFlag
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("kernel %s, -guest.seed=%d", k.version, seed)
	until := time.Now().Add(bound)
	for _, c := range []struct {
		near, far string // the copy modes
		kill      bool
	}{
		{"background", "write-blocking", false},
		{"write-blocking", "background", true},
	} {
		name := c.near + ", then " + c.far + " to another daemon"
		if c.kill {
			name += ", killed"
		}
		t.Run(name, func(t *testing.T) {
			dir := folder(t)
			s := &scene{t: t, seed: seed, dir: dir}
			create(t, s.path("src.img"), workload.New(seed, diskBytes))
			for _, name := range []string{"copy.img", "far.img"} {
				must(t, os.WriteFile(s.path(name), nil, 0o600))
				must(t, os.Truncate(s.path(name), diskBytes))
			}
			s.home = start(t, until, program, s.folder("home"))
			s.home.disk("src", s.path("src.img"))
			s.home.export("src", "disk")
			s.guest = boot(t, until, k, initrd, s.home.socket("nbd"), "disk", seed)
			first := s.guest.await("the guest has flushed something", func(p progress) bool { return p.synced > 0 })
			t.Logf("%v after power on, version %d is synced", time.Since(s.guest.began).Round(time.Millisecond), first.synced)

			s.home.disk("copy", s.path("copy.img"))
			leftSrc := s.move("src", "copy", c.near)

			away := start(t, until, program, s.folder("away"))
			away.disk("far", s.path("far.img"))
			away.export("far", "far")
			s.home.do("blockdev-add", args{"driver": "nbd", "node-name": "remote", "discard": "unmap", "export": "far",
				"server": args{"type": "unix", "path": away.socket("nbd")}})
			leftCopy := s.move("copy", "remote", c.far)

			s.guest.goOn(groups)
			if got := s.home.stats("remote"); got.Flushes == 0 || got.Discards == 0 {
				t.Errorf("the guest's flushes and discards did not come through to the target: %+v", got)
			}
			var end expectation
			if c.kill {
				last := s.guest.kill()
				end = expect(t, seed, diskBytes, last, last+workload.GroupSize)
			} else {
				last := s.guest.stop()
				end = expect(t, seed, diskBytes, last, last)
			}
			t.Logf("the guest ended after %v; version %d is synced", time.Since(s.guest.began).Round(time.Millisecond), end.Done())
			s.read(end)
			s.home.stop()
			away.stop()
			end.checkFile(t, "the last disk", s.path("far.img"))
			leftSrc.checkFile(t, "the first disk, as it was left", s.path("src.img"))
			leftCopy.checkFile(t, "the second disk, as it was left", s.path("copy.img"))
		})
	}
}

// scene is a guest and the daemon that has its disk.
type scene struct {
	t     *testing.T
	seed  uint64
	dir   string
	home  *daemon
	guest *machine
}

func (s *scene) path(name string) string { return filepath.Join(s.dir, name) }

func (s *scene) folder(name string) string {
	must(s.t, os.Mkdir(s.path(name), 0o700))
	return s.path(name)
}

// move mirrors the guest's disk and switches over, with the guest writing in every phase. It gives what must be on the disk that
// the guest has left.
func (s *scene) move(from, to, mode string) expectation {
	s.t.Helper()
	begin, at := time.Now(), s.guest.synced()
	s.home.do("blockdev-mirror", args{"job-id": "move", "device": from, "target": to, "sync": "full", "copy-mode": mode,
		"speed": slow})
	s.guest.goOn(groups) // while it copies
	s.home.do("block-job-set-speed", args{"device": "move", "speed": 0})
	s.home.wait("BLOCK_JOB_READY")
	ready, atReady := time.Since(begin), s.guest.synced()
	certain := s.guest.goOn(groups) // while both are in step
	s.home.do("job-complete", args{"id": "move"})
	s.home.wait("BLOCK_JOB_COMPLETED")
	completed := time.Since(begin)
	possible := s.guest.ask()
	s.guest.goOn(groups) // on the new disk
	s.t.Logf("%s to %s, %s: ready after %v and %d operations, completed after %v; %d operations until the guest was on the new disk",
		from, to, mode, ready.Round(time.Millisecond), atReady-at, completed.Round(time.Millisecond), possible-at)
	return expect(s.t, s.seed, diskBytes, certain, possible)
}

// read reads the disk as the next guest would: through the daemon, by a foreign program if there is one.
func (s *scene) read(end expectation) {
	s.t.Helper()
	program, err := exec.LookPath("qemu-img")
	if err != nil {
		s.t.Log("qemu-img is not installed; the disk is read from its file only")
		return
	}
	seen := s.path("seen.img")
	out, err := exec.CommandContext(s.t.Context(), program, "convert", "-f", "raw", "-O", "raw",
		fmt.Sprintf("nbd+unix:///disk?socket=%s", s.home.socket("nbd")), seen).CombinedOutput()
	if err != nil {
		s.t.Errorf("qemu-img convert: %v: %s", err, out)
		return
	}
	end.checkFile(s.t, "the last disk, read by qemu-img", seen)
}

// folder makes a folder whose name is short enough for sockets.
func folder(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "guest-")
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}
