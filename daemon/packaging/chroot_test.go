// SPDX-License-Identifier: Apache-2.0

package packaging

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// suite is Debian's release that the package is installed in.
const suite = "bookworm"

// root is a Debian of its own below a folder.
type root struct {
	t   *testing.T
	dir string
}

// newRoot makes a root of Debian's packages. The packages are kept in .cache, as they come from the network.
func newRoot(t *testing.T) root {
	t.Helper()
	cache, err := filepath.Abs("../../.cache/root")
	must(t, err)
	tarball := filepath.Join(cache, suite+"-"+runtime.GOARCH+".tar")
	if _, err := os.Stat(tarball); errors.Is(err, fs.ErrNotExist) {
		must(t, os.MkdirAll(cache, 0o755))
		made := t.TempDir() + "/root"
		ctx, cancel := context.WithTimeout(t.Context(), atMost)
		defer cancel()
		out, err := exec.CommandContext(ctx, "debootstrap", "--variant=minbase", "--include=man-db,bash-completion", suite, made).CombinedOutput()
		if err != nil {
			t.Skipf("debootstrap cannot make a root of %s: %v: %s", suite, err, out[max(0, len(out)-300):])
		}
		run(t, made, "tar", "-cf", tarball+".part", ".")
		must(t, os.Rename(tarball+".part", tarball))
	}
	r := root{t, t.TempDir() + "/root"}
	must(t, os.Mkdir(r.dir, 0o755))
	run(t, r.dir, "tar", "-xpf", tarball)
	return r
}

// command is one in the root, as a user. It sees no processes but its own, and all of them end with it.
func (r root) command(user string, words ...string) *exec.Cmd {
	args := append([]string{"--mount", "--pid", "--fork", "--kill-child", "--mount-proc=" + r.dir + "/proc", "chroot", "--userspec=" + user, r.dir}, words...)
	cmd := exec.CommandContext(r.t.Context(), "unshare", args...)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C.UTF-8", "HOME=/tmp", "MANPAGER=cat"}
	cmd.WaitDelay = time.Second
	return cmd
}

// as runs a command in the root, and returns what it says.
func (r root) as(user string, words ...string) string {
	r.t.Helper()
	out, err := r.command(user, words...).CombinedOutput()
	if err != nil {
		r.t.Fatalf("%s: %v\n%s", strings.Join(words, " "), err, out)
	}
	return string(out)
}

func (r root) sh(script string) string { r.t.Helper(); return r.as("root:root", "bash", "-ec", script) }

// files lists what is in the root, less what programs keep for themselves.
func (r root) files() (found []string) {
	r.t.Helper()
	must(r.t, filepath.WalkDir(r.dir, func(path string, _ fs.DirEntry, err error) error {
		below := strings.TrimPrefix(path, r.dir)
		for _, own := range []string{"/var/lib/dpkg", "/var/log", "/var/cache", "/tmp", "/proc", "/etc/.pwd.lock", "/run/adduser"} {
			if strings.HasPrefix(below, own) {
				return err
			}
		}
		if !strings.HasSuffix(below, "-") { // passwd- and its like, of adduser
			found = append(found, below)
		}
		return err
	}))
	return found
}

// TestPackageInFreshRoot installs the package as people do, uses it, and takes it away again.
func TestPackageInFreshRoot(t *testing.T) {
	needs(t, "debootstrap", "dpkg-deb", "unshare", "chroot", "tar")
	if os.Getuid() != 0 {
		t.Skip("a root of its own needs root")
	}
	out := t.TempDir()
	run(t, "../..", ".dist/build", out, runtime.GOARCH)
	r := newRoot(t)
	before := r.files()
	run(t, out, "cp", one(t, out+"/*.deb"), r.dir+"/tmp/blkmirror.deb")
	r.sh("dpkg -i /tmp/blkmirror.deb")

	t.Run("installed", r.installed)
	t.Run("manuals", r.manuals)
	t.Run("completion", r.completion)
	t.Run("daemon", r.daemon)
	t.Run("again", func(t *testing.T) { // an upgrade leaves what the administrator made
		r.sh("echo '# mine' >> /etc/blkmirror/blkmirrord.conf; chmod 0755 /var/lib/blkmirror/images; dpkg -i --force-confold /tmp/blkmirror.deb")
		if got := r.sh("stat -c %a /var/lib/blkmirror/images; tail -n 1 /etc/blkmirror/blkmirrord.conf"); got != "755\n# mine\n" {
			t.Errorf("after an upgrade: %q", got)
		}
	})
	t.Run("removed", func(t *testing.T) {
		r.sh("dpkg -r blkmirror")
		if got := r.sh("ls /usr/bin/blkmirror* 2>/dev/null || true; ls /etc/blkmirror /var/lib/blkmirror/images"); !strings.Contains(got, "blkmirrord.conf\n") ||
			!strings.Contains(got, "disk.img\n") || strings.Contains(got, "/usr/bin/blkmirror") {
			t.Errorf("after a removal: %s", got)
		}
	})
	t.Run("purged", func(t *testing.T) {
		r.sh("dpkg -P blkmirror")
		var left []string
		for _, path := range r.files() {
			if !slices.Contains(before, path) && !strings.HasPrefix(path, "/var/lib/blkmirror") {
				left = append(left, path)
			}
		}
		if len(left) > 0 {
			t.Errorf("left behind: %q", left)
		}
		if got := r.sh("find /var/lib/blkmirror/images -type f"); got != "/var/lib/blkmirror/images/disk.img\n" {
			t.Errorf("of the data there is left: %q", got)
		}
	})
}

func (r root) installed(t *testing.T) {
	r.t = t
	for path, want := range map[string]string{
		"/usr/bin/blkmirrord": "755 root:root", "/etc/blkmirror/blkmirrord.conf": "644 root:root",
		"/run/blkmirror": "750 blkmirror:blkmirror", "/var/lib/blkmirror": "750 blkmirror:blkmirror",
		"/var/lib/blkmirror/images": "750 blkmirror:blkmirror", "/var/lib/blkmirror/state": "700 blkmirror:blkmirror",
		"/etc/systemd/system/sockets.target.wants/blkmirrord.socket": "777 root:root", // a link
	} {
		if got := strings.TrimSpace(r.sh("stat -c '%a %U:%G' " + path)); got != want {
			t.Errorf("%s: %s, want %s", path, got, want)
		}
	}
	if got := r.sh("getent passwd blkmirror"); !strings.HasSuffix(got, ":/var/lib/blkmirror:/usr/sbin/nologin\n") {
		t.Errorf("the user is %s", got)
	}
	if got := r.sh("dpkg -V blkmirror; dpkg-query -W -f '${db:Status-Abbrev}' blkmirror"); got != "ii " {
		t.Errorf("dpkg says %q", got)
	}
}

func (r root) manuals(t *testing.T) {
	r.t = t
	for page, want := range map[string]string{"8 blkmirrord": "--nbd-server SPEC", "1 blkmirror": "SYNOPSIS", "1 blkmirror-mirror-start": "--dry-run"} {
		if got := r.sh("man " + page + " 2>/dev/null"); !strings.Contains(got, want) {
			t.Errorf("man %s:\n%s", page, got)
		}
		if got := r.sh("man --warnings " + page + " 2>&1 >/dev/null"); got != "" {
			t.Errorf("man %s: %s", page, got)
		}
	}
}

func (r root) completion(t *testing.T) {
	r.t = t
	got := r.sh(`source /usr/share/bash-completion/bash_completion
set +e
_completion_loader blkmirror # 124: loaded, try again
COMP_WORDS=(blkmirror mirror st) COMP_CWORD=2 COMP_LINE='blkmirror mirror st' COMP_POINT=19 COMP_TYPE=9
__start_blkmirror
echo "${COMPREPLY[@]}"`)
	if !strings.HasSuffix("\n"+got, "\nstart\n") { // what it complains about is that nobody types
		t.Errorf("blkmirror mirror st<Tab> gives %q", got)
	}
}

// daemon does what systemd does of the units, and talks to the daemon as an operator.
func (r root) daemon(t *testing.T) {
	r.t = t
	unit := r.sh("cat /usr/lib/systemd/system/blkmirrord.service")
	words := command(t, unit, r.sh("cat /etc/blkmirror/blkmirrord.conf"))
	path := setting(t, r.sh("cat /usr/lib/systemd/system/blkmirrord.socket"), "ListenStream")
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: r.dir + path})
	must(t, err)
	defer listener.Close()
	r.sh("chown blkmirror:blkmirror " + path + " && chmod 0660 " + path)
	passed, err := listener.File()
	must(t, err)
	cmd := r.command("blkmirror:blkmirror", words...)
	cmd.ExtraFiles = []*os.File{passed} // descriptor 3
	var said strings.Builder
	cmd.Stderr = &said
	must(t, cmd.Start())
	must(t, passed.Close())
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()

	client := func(words ...string) string {
		t.Helper()
		out, err := r.command("blkmirror:blkmirror", append([]string{"blkmirror", "--timeout", "60s", "-s", path}, words...)...).CombinedOutput()
		if err != nil {
			t.Fatalf("blkmirror %s: %v\n%s\nthe daemon says: %s", strings.Join(words, " "), err, out, said.String())
		}
		return string(out)
	}
	if got := client("status"); !strings.Contains(got, "exports  0") {
		t.Errorf("status: %s", got)
	}
	client("create", "/var/lib/blkmirror/images/disk.img", "8M", "--node", "disk")
	client("export", "add", "disk", "--writable")
	client("create", "/var/lib/blkmirror/images/copy.qcow2", "--like", "disk", "--node", "copy")
	client("mirror", "start", "disk", "copy", "--job", "m", "--complete")
	if got := client("exports"); !strings.Contains(got, "copy") {
		t.Errorf("exports after the mirror: %s", got)
	}
	if _, err := r.command("blkmirror:blkmirror", "blkmirror", "-s", path, "create", "/tmp/outside.img", "1M").CombinedOutput(); err == nil {
		t.Error("an image is made outside of the sandbox")
	}
	// Strangers do not reach the monitor.
	if out, err := r.command("nobody:nogroup", "blkmirror", "-s", path, "status").CombinedOutput(); err == nil {
		t.Errorf("nobody may ask: %s", out)
	}
	if got := r.sh("stat -c '%a %U' /run/blkmirror/nbd"); got != "600 blkmirror\n" {
		t.Errorf("the NBD server's socket: %s", got)
	}
	// Killed as by systemd, and started again: the disk is there, on the copy.
	client("qmp", "quit")
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("the daemon ended with %v: %s", err, said.String())
		}
	case <-time.After(time.Minute):
		t.Error("the daemon does not end")
	}
	again, err := listener.File()
	must(t, err)
	cmd = r.command("blkmirror:blkmirror", words...)
	cmd.ExtraFiles = []*os.File{again}
	cmd.Stderr = &said
	must(t, cmd.Start())
	must(t, again.Close())
	if got := client("exports"); !strings.Contains(got, "copy") {
		t.Errorf("exports after a restart: %s", got)
	}
	client("qmp", "quit")
	if err := cmd.Wait(); err != nil {
		if exit := new(exec.ExitError); errors.As(err, &exit) {
			err = fmt.Errorf("status %v, signal %v", exit.ExitCode(), exit.Sys().(syscall.WaitStatus).Signal())
		}
		t.Errorf("the daemon ended with %v: %s", err, said.String())
	}
	r.sh("rm -f /var/lib/blkmirror/images/copy.qcow2")
}
