// SPDX-License-Identifier: Apache-2.0

package blackbox

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// tool finds a program, or skips the test.
func tool(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		if path, err = exec.LookPath("/usr/sbin/" + name); err != nil {
			t.Skipf("%s is not installed", name)
		}
	}
	return path
}

// needRoot skips the test where it has not the rights to mount file systems or trace processes.
func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

// attempt runs a program and returns what it printed.
func attempt(t testing.TB, name string, arguments ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	out, err := exec.CommandContext(ctx, tool(t, name), arguments...).CombinedOutput()
	return string(out), err
}

// run runs a program that must succeed.
func run(t testing.TB, name string, arguments ...string) string {
	t.Helper()
	out, err := attempt(t, name, arguments...)
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(arguments, " "), err, out)
	}
	return out
}

// image makes a thin image with random data at the given offsets, each of n bytes.
func image(t testing.TB, path string, size, n int64, offsets ...int64) {
	t.Helper()
	f, err := os.Create(path)
	must(t, err)
	defer f.Close()
	must(t, f.Truncate(size))
	random := rand.NewChaCha8([32]byte{1})
	data := make([]byte, n)
	for _, off := range offsets {
		_, _ = random.Read(data) // never fails
		_, err := f.WriteAt(data, off)
		must(t, err)
	}
	must(t, f.Sync())
}

// same compares two images.
func same(t testing.TB, a, b string) {
	t.Helper()
	first, err := os.ReadFile(a)
	must(t, err)
	second, err := os.ReadFile(b)
	must(t, err)
	if len(first) != len(second) {
		t.Fatalf("%s has %d bytes, %s %d", a, len(first), b, len(second))
	}
	for at := 0; at < len(first); at += 512 {
		if end := min(at+512, len(first)); !bytes.Equal(first[at:end], second[at:end]) {
			t.Fatalf("%s and %s differ at offset %d", a, b, at)
		}
	}
}

// holdWithQEMU has qemu-io keep an image open until the test ends or release is called.
func holdWithQEMU(t testing.TB, arguments ...string) (release func()) {
	t.Helper()
	cmd := exec.Command(tool(t, "qemu-io"), arguments...)
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	var complaint strings.Builder
	cmd.Stderr = &complaint
	must(t, cmd.Start())
	released := false
	release = func() {
		if !released {
			released = true
			_ = in.Close()
			_, _ = io.Copy(io.Discard, out)
			_ = cmd.Wait()
		}
	}
	t.Cleanup(release)
	_, err = io.WriteString(in, "length\n")
	must(t, err)
	answer, err := bufio.NewReader(out).ReadString('\n') // it answers when the image is open
	if err != nil || !strings.Contains(answer, "iB") {
		t.Fatalf("qemu-io %v: %v %s %s", arguments, err, answer, complaint.String())
	}
	return release
}
