// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/blkmirror/blkmirror/cmd/blkmirror/internal/engine"
)

// copies is a folder with a disk of 16 MiB: 2 MiB of data, 2 MiB of zeroes that are written, and holes.
type copies struct {
	t      *testing.T
	folder string
	want   []byte
}

func newCopies(t *testing.T) *copies {
	t.Helper()
	c := &copies{t: t, folder: shortFolder(t), want: make([]byte, 16<<20)}
	random := rand.NewChaCha8([32]byte{1})
	_, _ = random.Read(c.want[4<<20 : 6<<20]) // never fails
	f, err := os.Create(c.path("src.img"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(c.want[4<<20:8<<20], 4<<20); err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(16 << 20); err != nil {
		t.Fatal(err)
	}
	return c
}

func (c *copies) path(name string) string { return filepath.Join(c.folder, name) }

// run copies; names without a slash or colon are of the folder.
func (c *copies) run(args string) result {
	c.t.Helper()
	words := strings.Fields(args)
	for i, w := range words {
		if !strings.HasPrefix(w, "-") && !strings.ContainsAny(w, "/:") && (i == 0 || !strings.HasSuffix(words[i-1], "format")) {
			words[i] = c.path(w)
		}
	}
	return try(c.t.Context(), "", append([]string{"copy"}, words...)...)
}

func (c *copies) holds(name string) {
	c.t.Helper()
	if got, err := os.ReadFile(c.path(name)); err != nil || !bytes.Equal(got, c.want) {
		c.t.Errorf("%s is not what it was copied from (%v)", name, err)
	}
}

// allocated is in bytes.
func (c *copies) allocated(name string) int64 {
	c.t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(c.path(name), &st); err != nil {
		c.t.Fatal(err)
	}
	return st.Blocks * 512
}

func TestCopy(t *testing.T) {
	c := newCopies(t)
	r := c.run("src.img a.qcow2 --verify")
	for _, want := range []string{"skipped    14 MiB\n", "source     4 MiB allocated of 16 MiB\n", "0 B allocated before\n", "verified   both read the same\n",
		"copy: ready 100%, 16 MiB of 16 MiB"} {
		if !strings.Contains(r.stdout, want) {
			t.Errorf("no %q in\n%s", want, r.stdout)
		}
	}
	if r.status != exitOK || r.stderr != "" {
		t.Errorf("%+v", r)
	}
	if n := c.allocated("a.qcow2"); n > 3<<20 {
		t.Errorf("the qcow2 image has %d bytes", n)
	}
	if r := c.run("a.qcow2 b.img --verify"); r.status != exitOK {
		t.Errorf("%+v", r)
	}
	c.holds("b.img")
	if n := c.allocated("b.img"); n > 2<<20 {
		t.Errorf("zeroes that were written take space in the copy: it has %d bytes", n)
	}

	// What is there stays, unless it has no data.
	if r := c.run("src.img b.img"); r.status != exitFailed || !strings.Contains(r.stderr, "has data in it: --force overwrites them") {
		t.Errorf("%+v", r)
	}
	if err := os.WriteFile(c.path("b.img"), []byte("something else"), 0o600); err != nil {
		t.Fatal(err)
	}
	if r := c.run("src.img b.img --force"); r.status != exitOK {
		t.Errorf("%+v", r)
	}
	c.holds("b.img")
	for name, size := range map[string]int64{"empty.img": 0, "same.img": 16 << 20, "larger.img": 32 << 20} {
		if err := os.WriteFile(c.path(name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(c.path(name), size); err != nil {
			t.Fatal(err)
		}
		if r := c.run("src.img " + name); r.status != exitOK {
			t.Errorf("%s: %+v", name, r)
		}
		c.holds(name)
	}

	if r := c.run("src.img offloaded.img --offload --verify"); r.status != exitOK {
		t.Errorf("%+v", r)
	}
	c.holds("offloaded.img")

	// Programs read one object at the end.
	r = c.run("src.img c.img --json --verify")
	lines := strings.Split(strings.TrimSpace(r.stdout), "\n")
	var report map[string]any
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &report); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]any{"size": 16.0 * (1 << 20), "verified": true, "target-allocated-before": 0.0, "skipped-bytes": 14.0 * (1 << 20)} {
		if report[name] != want {
			t.Errorf("%s is %v, not %v", name, report[name], want)
		}
	}
}

func TestCopyRefuses(t *testing.T) {
	c := newCopies(t)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.Symlink(c.path("src.img"), c.path("link.img")))
	must(os.Symlink(c.path("nowhere"), c.path("loose.img")))
	must(os.Link(c.path("src.img"), c.path("other.img")))
	must(os.WriteFile(c.path("hidden.img"), []byte("QFI\xfb and more"), 0o600))
	must(os.WriteFile(c.path("not.qcow2"), []byte("no image"), 0o600))
	must(os.Mkdir(c.path("folder"), 0o700))
	for _, test := range []struct {
		args   string
		status int
		stderr string
	}{
		{"src.img link.img", exitFailed, "are the same file"},
		{"src.img other.img --force", exitFailed, "are the same file"},
		{"nothing.img x.img", exitFailed, "no such file"},
		{"folder x.img", exitFailed, "neither a file nor a block device"},
		{"src.img folder", exitFailed, "neither a file nor a block device"},
		{"src.img /dev/null", exitFailed, "neither a file nor a block device"},
		{"src.img loose.img", exitFailed, "a symbolic link that leads nowhere"},
		{"src.img folder/no/x.img", exitFailed, "cannot be made"},
		{"hidden.img x.img", exitUsage, "--source-format qcow2, or raw"},
		{"not.qcow2 x.img", exitFailed, "not.qcow2"},
		{"src.img x.img --format vmdk", exitUsage, "use one of raw, qcow2"},
		{"src.img x.img --speed fast", exitUsage, "fast"},
		{"src.img nbd+unix:///x?socket=/nonexistent", exitFailed, "/nonexistent"},
		{"src.img nbd:x", exitUsage, "is no NBD URI"},
		{"src.img", exitUsage, "2 arg"},
	} {
		r := c.run(strings.ReplaceAll(test.args, "folder/", c.folder+"/"))
		if r.status != test.status || !strings.Contains(r.stderr, test.stderr) {
			t.Errorf("%s: status %d, want %d with %q: %s", test.args, r.status, test.status, test.stderr, r.stderr)
		}
	}
	if _, err := os.Lstat(c.path("x.img")); err == nil {
		t.Error("a refused copy left a file")
	}
	if r := c.run("hidden.img x.img --source-format raw"); r.status != exitOK {
		t.Errorf("%+v", r)
	}
	if got, err := os.ReadFile(c.path("x.img")); err != nil || !bytes.HasPrefix(got, []byte("QFI\xfb and more")) {
		t.Errorf("%q, %v", got, err)
	}
}

// TestCopyOfADiskInUse is one that somebody writes to.
func TestCopyOfADiskInUse(t *testing.T) {
	c := newCopies(t)
	serve(t, c, "src.img", "disk", 0)
	r := c.run("src.img x.img")
	if r.status != exitFailed || !strings.Contains(r.stderr, "lock") {
		t.Errorf("%+v", r)
	}
	if _, err := os.Lstat(c.path("x.img")); err == nil {
		t.Error("a refused copy left a file")
	}
}

// serve serves a file of the folder, writable, and returns its URI.
func serve(t *testing.T, c *copies, name, export string, size int64) string {
	t.Helper()
	e := engine.New()
	t.Cleanup(func() {
		if err := e.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	if size > 0 {
		f, err := os.Create(c.path(name))
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Truncate(size); err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	socket := c.path(export + ".sock")
	for _, command := range []struct {
		name      string
		arguments any
	}{
		{"blockdev-add", imageOptions("n", c.path(name), formatRaw)},
		{"nbd-server-start", map[string]any{"addr": map[string]any{"type": "unix", "data": map[string]any{"path": socket}}}},
		{"block-export-add", map[string]any{"type": "nbd", "id": "e", "node-name": "n", "name": export, "writable": true}},
	} {
		if err := e.Execute(t.Context(), command.name, command.arguments, nil); err != nil {
			t.Fatal(err)
		}
	}
	return "nbd+unix:///" + export + "?socket=" + socket
}

func TestCopyOverNBD(t *testing.T) {
	c := newCopies(t)
	same, larger := serve(t, c, "same.img", "same", 16<<20), serve(t, c, "larger.img", "larger", 20<<20)
	smaller := serve(t, c, "smaller.img", "smaller", 8<<20)
	for _, test := range []struct {
		args   string
		status int
		stderr string
	}{
		{"src.img " + same + " --verify", exitOK, ""},
		{"src.img " + same, exitFailed, "may have data in it"},
		{"src.img " + same + " --force --verify", exitOK, ""},
		{"src.img " + larger + " --verify", exitOK, ""}, // as much of it as is needed
		{"src.img " + smaller, exitFailed, "is too small: it has 8 MiB, and 16 MiB are needed"},
		{"src.img " + larger + " --format qcow2", exitUsage, "only raw images"},
		{same + " back.img --verify", exitOK, ""},
	} {
		if r := c.run(test.args); r.status != test.status || !strings.Contains(r.stderr, test.stderr) {
			t.Errorf("%s: status %d, want %d with %q: %s", test.args, r.status, test.status, test.stderr, r.stderr)
		}
	}
	c.holds("back.img")
}

// TestCopyIsInterrupted checks what Ctrl-C leaves.
func TestCopyIsInterrupted(t *testing.T) {
	c := newCopies(t)
	if err := os.WriteFile(c.path("there.img"), []byte("data"), 0o600); err != nil {
		t.Fatal(err)
	}
	for args, want := range map[string]string{
		"new.img":           " left to copy; '" + c.path("new.img") + "', which was not there before, is removed",
		"there.img --force": " left to copy; '" + c.path("there.img") + "' is incomplete",
	} {
		ctx, cancel := context.WithCancelCause(t.Context())
		var stderr bytes.Buffer
		stdout := writerFunc(func(text []byte) (int, error) {
			if bytes.Contains(text, []byte("copy: running")) {
				cancel(errInterrupted)
			}
			return len(text), nil
		})
		words := append([]string{"copy", c.path("src.img")}, strings.Fields(filepath.Join(c.folder, args))...)
		status := run(ctx, append(words, "--speed", "64K"), nil, stdout, &stderr, func(string) string { return "" })
		if status != exitInterrupted || !strings.Contains(stderr.String(), "interrupted, with ") || !strings.Contains(stderr.String(), want) {
			t.Errorf("%s: status %d: %s", args, status, stderr.String())
		}
		cancel(nil)
	}
	if _, err := os.Lstat(c.path("new.img")); err == nil {
		t.Error("an incomplete copy is there")
	}
	// Another copy of the same disk is not disturbed by what was left.
	if r := c.run("src.img new.img --verify"); r.status != exitOK {
		t.Errorf("%+v", r)
	}
}

// TestCopyOfOddSizes checks disks that do not end with a sector.
func TestCopyOfOddSizes(t *testing.T) {
	c := newCopies(t)
	for _, size := range []int64{0, 1, 1000, 65537} {
		if err := os.Truncate(c.path("src.img"), size); err != nil {
			t.Fatal(err)
		}
		for _, to := range []string{"x.img", "x.qcow2"} {
			if r := c.run("src.img " + to + " --force --verify"); r.status != exitOK {
				t.Errorf("%d bytes to %s: %+v", size, to, r)
			}
		}
	}
}

// TestCopyOnATerminal shows a bar.
func TestCopyOnATerminal(t *testing.T) {
	if testing.Short() {
		t.Skip("builds programs")
	}
	c := newCopies(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	client := buildProgram(t, c.folder, "blkmirror")
	shown := onConsole(t, exec.CommandContext(ctx, client, "copy", c.path("src.img"), c.path("x.img"), "--speed", "1M", "--verify"))
	shown.see("copy running")
	shown.see("[=")
	shown.see("copy ready     100% [====")
	shown.see("verify running")
	shown.see("verified   both read the same")
	if status := shown.end(); status != exitOK {
		t.Errorf("status %d", status)
	}
	shown = onConsole(t, exec.CommandContext(ctx, client, "copy", c.path("src.img"), c.path("y.img"), "--speed", "64K"))
	shown.see("copy running")
	shown.enter("\x03") // Ctrl-C
	shown.see("is removed")
	if status := shown.end(); status != exitInterrupted {
		t.Errorf("status %d", status)
	}
}
