// SPDX-License-Identifier: Apache-2.0

package hosts

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"go.uber.org/goleak"
)

const (
	// atOnce is how many tests run at the same time; they wait more than they work.
	atOnce = 4
	module = "github.com/blkmirror/blkmirror"
)

var (
	program string // the daemon under test
	pki     string // directory of certificates for server and client
)

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(runAll(m))
}

func runAll(m *testing.M) int {
	if err := flag.Set("test.parallel", fmt.Sprint(atOnce)); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	dir, err := os.MkdirTemp("", "hosts-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if err := prepare(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	code := m.Run()
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	return code
}

// prepare builds the programs and has the client make certificates.
func prepare(dir string) error {
	build := exec.Command("go", "build", "-trimpath", "-o", dir+"/", module+"/cmd/blkmirror", module+"/cmd/blkmirrord")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("cannot build the programs: %w\n%s", err, out)
	}
	if program = os.Getenv("BLKMIRROR_DAEMON"); program == "" {
		program = filepath.Join(dir, "blkmirrord")
	}
	pki = filepath.Join(dir, "pki")
	out, err := exec.Command(filepath.Join(dir, "blkmirror"), "tls", "init", pki, "--host", targetAddress).CombinedOutput()
	if err != nil {
		return fmt.Errorf("blkmirror tls init: %w\n%s", err, out)
	}
	return nil
}

// interop skips a test that is not one of the few that always run.
func interop(t *testing.T) {
	t.Helper()
	if os.Getenv("BLKMIRROR_INTEROP") == "" {
		t.Skip("one of the longer ones: `make interop` runs it (BLKMIRROR_INTEROP is not set)")
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
