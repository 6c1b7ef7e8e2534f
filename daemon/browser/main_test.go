// SPDX-License-Identifier: Apache-2.0

package browser

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"go.uber.org/goleak"
)

var (
	program  string // the daemon under test
	chromium string
	pictures = flag.String("browser.pictures", "", "make the screenshots in this folder")
)

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(runAll(m))
}

func runAll(m *testing.M) int {
	if os.Getenv("BLKMIRROR_INTEROP") == "" {
		return m.Run() // everything is skipped
	}
	chromium, _ = exec.LookPath("chromium")
	if program = os.Getenv("BLKMIRROR_DAEMON"); program == "" {
		dir, err := os.MkdirTemp("", "browser-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		program = filepath.Join(dir, "blkmirrord")
		build := exec.Command("go", "build", "-trimpath", "-o", program, "github.com/blkmirror/blkmirror/cmd/blkmirrord")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "cannot build the daemon: %v\n%s", err, out)
			return 1
		}
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

// needChromium skips a test where there is no browser, or no time for it.
func needChromium(t *testing.T) {
	t.Helper()
	switch {
	case os.Getenv("BLKMIRROR_INTEROP") == "":
		t.Skip("one of the longer ones: `make interop` runs it (BLKMIRROR_INTEROP is not set)")
	case chromium == "":
		t.Skip("chromium is not installed (Debian package chromium; .ci/peers interop installs it)")
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
