// SPDX-License-Identifier: Apache-2.0

package images

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// newest stands before the name of a program of the system in $PEER_ROOT.
const newest = "newest "

// attempt runs a program and returns what it printed.
func attempt(t testing.TB, name string, arguments ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if plain, found := strings.CutPrefix(name, newest); found {
		name, arguments = "chroot", append([]string{os.Getenv("PEER_ROOT"), plain}, arguments...)
	}
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("%s is not installed", name)
	}
	out, err := exec.CommandContext(ctx, path, arguments...).CombinedOutput()
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

// peers are the programs that can stand for qemu-img.
func peers() []string {
	if os.Getenv("PEER_ROOT") != "" {
		return []string{"qemu-img", newest + "qemu-img"}
	}
	return []string{"qemu-img"}
}

// inOrder has qemu-img check an image; leaks are fine after a kill.
func inOrder(t testing.TB, path string, leaksToo bool) {
	t.Helper()
	for _, peer := range peers() {
		out, err := attempt(t, peer, "check", "-f", "qcow2", path)
		var exit *exec.ExitError
		if err != nil && !(leaksToo && errors.As(err, &exit) && exit.ExitCode() == 3) {
			t.Fatalf("%s check %s: %v\n%s", peer, path, err, out)
		}
	}
}

// holds has qemu-img compare an image with bytes.
func holds(t testing.TB, path string, content []byte) {
	t.Helper()
	raw := filepath.Join(filepath.Dir(path), "model.raw")
	must(t, os.WriteFile(raw, content, 0o600))
	for _, peer := range peers() {
		run(t, peer, "compare", "-f", "raw", "-F", "qcow2", raw, path)
	}
}

// same fails if two contents differ.
func same(t testing.TB, what string, got, want []byte) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%s: %d bytes, not %d", what, len(got), len(want))
	}
	for at := 0; at < len(got); at += sector {
		if end := min(at+sector, len(got)); !bytes.Equal(got[at:end], want[at:end]) {
			t.Fatalf("%s: differs at offset %d: %x…, not %x…", what, at, got[at:at+16], want[at:at+16])
		}
	}
}

// convert has qemu-img read an image, with all below it, and returns what it holds.
func convert(t testing.TB, format, path string) []byte {
	t.Helper()
	raw := path + ".converted"
	run(t, "qemu-img", "convert", "-f", format, "-O", "raw", path, raw)
	b, err := os.ReadFile(raw)
	must(t, err)
	must(t, os.Remove(raw))
	return b
}
