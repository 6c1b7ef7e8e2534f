// SPDX-License-Identifier: Apache-2.0

package images

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"go.uber.org/goleak"
)

var (
	program string // the daemon under test
	seed    = flag.Uint64("images.seed", 0, "seed of what is random; 0 for another one each time")
)

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(runAll(m))
}

func runAll(m *testing.M) int {
	if *seed == 0 {
		*seed = rand.Uint64()
	}
	if program = os.Getenv("BLKMIRROR_DAEMON"); program == "" {
		dir, err := os.MkdirTemp("", "images-")
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

// interop says whether there is time for everything.
func interop() bool { return os.Getenv("BLKMIRROR_INTEROP") != "" }

// dice are the random numbers of a test.
func dice(t testing.TB) *rand.Rand {
	t.Helper()
	t.Logf("-images.seed=%d", *seed)
	return rand.New(rand.NewPCG(*seed, 1))
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
