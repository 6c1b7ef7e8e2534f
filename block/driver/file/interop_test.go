// SPDX-License-Identifier: Apache-2.0

package file

import (
	"bufio"
	"io"
	"os/exec"
	"strings"
	"testing"

	"github.com/blkmirror/blkmirror/block"
)

func qemuTool(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("%s is not installed", name)
	}
	return path
}

// holdWithQEMU has a process of QEMU keep an image open until the returned function is called.
func holdWithQEMU(t testing.TB, args ...string) (release func()) {
	t.Helper()
	cmd := exec.Command(qemuTool(t, "qemu-io"), args...)
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	var complaint strings.Builder
	cmd.Stderr = &complaint
	must(t, cmd.Start())
	_, err = io.WriteString(in, "length\n")
	must(t, err)
	answer, err := bufio.NewReader(out).ReadString('\n') // it answers when the image is open
	if err != nil {
		_ = cmd.Wait()
		t.Fatalf("qemu-io %v: %v, %s", args, err, complaint.String())
	}
	if !strings.Contains(answer, "KiB") && !strings.Contains(answer, "MiB") {
		t.Fatalf("qemu-io %v: %s", args, answer)
	}
	return func() {
		_ = in.Close()
		_, _ = io.Copy(io.Discard, out)
		_ = cmd.Wait()
	}
}

func TestQEMUsLocksStopUs(t *testing.T) {
	qemuTool(t, "qemu-io")
	name := newImage(t, t.TempDir(), 1<<20)
	f := mustOpen(t, Options{Filename: name, Locking: LockingOn})

	// A tool that writes and shares everything: another writer may join, but not one that wants to be alone.
	release := holdWithQEMU(t, "-f", "raw", name)
	expectLocks(t, name, 100, 101)
	must(t, f.SetPermissions(exportNeeds, exportShares))
	err := f.SetPermissions(exportNeeds, exportShares&^block.PermWrite)
	if block.KindOf(err) != block.KindPermission || !strings.HasPrefix(err.Error(), `Failed to get shared "write" lock`) {
		t.Errorf("alone beside a writer: %v", err)
	}
	must(t, f.SetPermissions(0, block.PermAll))
	release()
	must(t, f.SetPermissions(exportNeeds, exportShares&^block.PermWrite))
	must(t, f.SetPermissions(0, block.PermAll))

	// One that shares no write: no writer may join, but a reader may.
	release = holdWithQEMU(t, "--image-opts",
		"driver=blkdebug,image.driver=file,image.filename="+name+",unshare-child-perms.0=write")
	err = f.SetPermissions(exportNeeds, exportShares)
	if block.KindOf(err) != block.KindPermission || !strings.HasPrefix(err.Error(), `Failed to get "write" lock`) {
		t.Errorf("writing beside one that does not share: %v", err)
	}
	must(t, f.SetPermissions(block.PermConsistentRead, exportShares))
	forced := mustOpen(t, Options{Filename: name, ReadOnly: true, ForceShare: true})
	must(t, forced.SetPermissions(block.PermAll, 0))
	release()
	must(t, f.SetPermissions(exportNeeds, exportShares))
}

func TestOurLocksStopQEMU(t *testing.T) {
	tool := qemuTool(t, "qemu-io")
	image := qemuTool(t, "qemu-img")
	name := newImage(t, t.TempDir(), 1<<20)
	f := mustOpen(t, Options{Filename: name, Locking: LockingOn})
	run := func(refusal string, tool string, args ...string) {
		t.Helper()
		out, err := exec.Command(tool, args...).CombinedOutput()
		switch {
		case refusal == "" && err != nil:
			t.Errorf("%v: %v, %s", args, err, out)
		case refusal != "" && (err == nil || !strings.Contains(string(out), refusal)):
			t.Errorf("%v: %v, %s; want a refusal with %s", args, err, out, refusal)
		}
	}
	write := []string{"-f", "raw", "-c", "write 0 512", name}
	run("", tool, write...)
	must(t, f.SetPermissions(exportNeeds, exportShares&^block.PermWrite))
	run(`"write" lock`, tool, write...)
	run("", tool, "-f", "raw", "-r", "-c", "read 0 512", name)
	must(t, f.SetPermissions(block.PermWrite, block.PermWriteUnchanged)) // a mirror's target
	run(`"consistent read" lock`, tool, "-f", "raw", "-r", "-c", "read 0 512", name)
	must(t, f.SetPermissions(0, block.PermAll))
	run("", tool, write...)

	// A format wants nobody to write beside it, unless it is told otherwise.
	format := name + ".qcow2"
	run("", image, "create", "-q", "-f", "qcow2", format, "1M")
	writer := mustOpen(t, Options{Filename: format})
	must(t, writer.SetPermissions(exportNeeds, exportShares))
	run(`shared "write" lock`, image, "info", "-f", "qcow2", format)
	run("", image, "info", "-f", "qcow2", "-U", format)
	must(t, writer.SetPermissions(block.PermConsistentRead, exportShares))
	run("", image, "info", "-f", "qcow2", format)
}
