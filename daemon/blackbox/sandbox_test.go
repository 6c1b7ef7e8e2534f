// SPDX-License-Identifier: Apache-2.0

package blackbox

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"

	kernel "github.com/landlock-lsm/go-landlock/landlock/syscall"
)

// needLandlock skips the test where the kernel cannot confine processes.
func needLandlock(t *testing.T, abi int) {
	t.Helper()
	if has, err := kernel.LandlockGetABIVersion(); err != nil || has < abi {
		t.Skipf("the kernel has no Landlock of version %d: %d, %v", abi, has, err)
	}
}

// Whoever names a path, what is outside of the sandbox cannot be opened, and the error says why.
func TestSandbox(t *testing.T) {
	needLandlock(t, 3)
	inside, outside, shown := folder(t), folder(t), folder(t)
	for _, path := range []string{inside + "/in.img", outside + "/out.img", shown + "/ro.img"} {
		image(t, path, 1<<20, 1<<16, 0)
	}
	must(t, os.Symlink(outside+"/out.img", inside+"/link.img"))
	d := launch(t, inside, "--sandbox", inside, "--sandbox-ro", shown, "--qmp", inside+"/qmp",
		"--nbd-server", "addr.type=unix,addr.path="+inside+"/nbd", "--pidfile", inside+"/pid")
	d.connect()
	d.disk("src", inside+"/in.img", nil)
	d.export("src")
	must(t, d.guest("src").WriteAt(t.Context(), []byte("hello"), 0, 0))
	file := func(path string, readOnly bool) args {
		return args{"driver": "file", "node-name": "n", "filename": path, "read-only": readOnly}
	}
	for _, refused := range []args{file(outside+"/out.img", false), file(outside+"/out.img", true), file(inside+"/link.img", true),
		file(inside+"/../"+outside[len("/tmp/"):]+"/out.img", true), file(shown+"/ro.img", false), file("/etc/passwd", true)} {
		d.refused("blockdev-add", refused, refused["filename"].(string), "sandbox", inside, shown+" (read-only)")
	}
	d.do("blockdev-add", file(shown+"/ro.img", true))
	d.do("blockdev-del", args{"node-name": "n"})

	// Nor can a backing file that an image names, nor a socket outside be made.
	qemuImg := tool(t, "qemu-img")
	for name, backing := range map[string]string{"good": inside + "/in.img", "bad": outside + "/out.img"} {
		if text, err := exec.Command(qemuImg, "create", "-q", "-f", "qcow2", "-F", "raw", "-b", backing, inside+"/"+name+".qcow2").CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, text)
		}
	}
	overlay := func(name string) args {
		return args{"driver": "qcow2", "node-name": "o", "read-only": true,
			"file": args{"driver": "file", "filename": inside + "/" + name + ".qcow2"}}
	}
	d.refused("blockdev-add", overlay("bad"), outside+"/out.img", "sandbox", inside)
	d.do("block-export-del", args{"id": "export-src", "mode": "hard"})
	d.do("blockdev-del", args{"node-name": "src"})
	d.do("blockdev-add", overlay("good"))
	d.do("blockdev-del", args{"node-name": "o"})
	d.do("nbd-server-stop", nil)
	d.refused("nbd-server-start", args{"addr": args{"type": "unix", "data": args{"path": outside + "/nbd"}}}, "sandbox", inside)

	// All threads are confined, and may not gain rights.
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", d.pid))
	must(t, err)
	for _, task := range tasks {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/status", d.pid, task.Name()))
		if os.IsNotExist(err) {
			continue // it has ended
		}
		must(t, err)
		if !strings.Contains(string(text), "NoNewPrivs:\t1") {
			t.Errorf("thread %s may gain rights", task.Name())
		}
	}
}

// The command line obeys, too, and says what is wrong with it.
func TestSandboxOfCommandLine(t *testing.T) {
	needLandlock(t, 3)
	inside, outside := folder(t), folder(t)
	image(t, outside+"/out.img", 1<<20, 0)
	for _, c := range []struct {
		options []string
		words   []string
	}{
		{[]string{"--sandbox", inside, "--blockdev", "file,node-name=n,filename=" + outside + "/out.img"}, []string{"out.img", "sandbox", inside}},
		{[]string{"--blockdev", "file,node-name=n,filename=" + outside + "/out.img", "--sandbox", inside}, []string{"out.img", "sandbox", inside}},
		{[]string{"--sandbox", inside, "--qmp", outside + "/qmp"}, []string{outside + "/qmp", "sandbox"}},
		{[]string{"--sandbox", inside, "--pidfile", outside + "/pid"}, []string{"--pidfile", outside + "/pid", "sandbox"}},
		{[]string{"--sandbox", inside + "/none"}, []string{"--sandbox", inside + "/none"}},
		{[]string{"--sandbox", inside + ":"}, []string{"empty"}},
		{[]string{"--sandbox-best-effort"}, []string{"need --sandbox"}},
		{[]string{"--sandbox", inside, "--sandbox-tcp", "70000"}, []string{"--sandbox-tcp 70000"}},
	} {
		said := fails(t, inside, c.options...)
		for _, w := range c.words {
			if !strings.Contains(said, w) {
				t.Errorf("%v: %q is not in: %s", c.options, w, said)
			}
		}
	}
	d := launch(t, inside, "--sandbox", inside+":"+outside, "--sandbox-best-effort", "--qmp", inside+"/qmp",
		"--blockdev", "file,node-name=n,filename="+outside+"/out.img")
	d.connect()
	d.alive()
}

func TestSandboxOfTCP(t *testing.T) {
	needLandlock(t, 4)
	inside, port := folder(t), freePort(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	_, other, err := net.SplitHostPort(l.Addr().String())
	must(t, err)
	d := launch(t, inside, "--sandbox", inside, "--sandbox-tcp", port, "--qmp", inside+"/qmp",
		"--nbd-server", "addr.type=inet,addr.host=127.0.0.1,addr.port="+port)
	d.connect()
	d.refused("blockdev-add", args{"driver": "nbd", "node-name": "n", "server": args{"type": "inet", "host": "127.0.0.1", "port": other}},
		other, "Permission denied")
	d.do("nbd-server-stop", nil)
	d.refused("nbd-server-start", args{"addr": args{"type": "inet", "data": args{"host": "127.0.0.1", "port": "0"}}}, "sandbox")
	d.do("nbd-server-start", args{"addr": args{"type": "inet", "data": args{"host": "127.0.0.1", "port": port}}})
}

// A kernel without Landlock is an error, unless the operator says that it need not be.
func TestSandboxWithoutKernel(t *testing.T) {
	needRoot(t)
	strace, inside := tool(t, "strace"), folder(t)
	run := func(options ...string) (string, error) {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		text, err := exec.CommandContext(ctx, strace, append([]string{"-f", "-qq", "-o", "/dev/null", "-e", "trace=landlock_create_ruleset",
			"-e", "inject=landlock_create_ruleset:error=ENOSYS", program, "--sandbox", inside}, options...)...).CombinedOutput()
		if strings.Contains(string(text), "invalid system call") {
			t.Skipf("this strace does not know Landlock: %s", text)
		}
		return string(text), err
	}
	text, err := run("--qmp", inside+"/qmp")
	if err == nil || !strings.Contains(text, "no Landlock") || !strings.Contains(text, "--sandbox-best-effort") {
		t.Errorf("%v: %s", err, text)
	}
	// This one goes as far as to the option that is wrong.
	text, err = run("--sandbox-best-effort", "--blockdev", "file,node-name=n,filename="+inside+"/none")
	if err == nil || !strings.Contains(text, "cannot confine") || !strings.Contains(text, "/none': No such file") {
		t.Errorf("%v: %s", err, text)
	}
}
