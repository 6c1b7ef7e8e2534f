// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// Environment of TestScenarios.
const (
	envDaemon = "BLKMIRROR_DAEMON" // command prefix; built from cmd/blkmirrord if unset
	envKeep   = "BLKMIRROR_KEEP"   // not empty: keep the scenarios' folders
	envAll    = "BLKMIRROR_ALL"    // not empty: run what LeftOut leaves out, too
)

// atOnce is how many scenarios run side by side, unless -parallel says
// otherwise: they mostly wait.
const atOnce = "4"

func TestMain(m *testing.M) {
	if os.Getenv(envFake) != "" {
		os.Exit(fakeDaemon())
	}
	flag.Parse()
	chosen := false
	flag.Visit(func(f *flag.Flag) { chosen = chosen || f.Name == "test.parallel" })
	if !chosen {
		if err := flag.Set("test.parallel", atOnce); err != nil {
			panic(err)
		}
	}
	goleak.VerifyTestMain(m)
}

// TestScenarios runs the recorded scenarios, one subtest each:
//
//	go test ./daemon/conformance -run TestScenarios/job/ -v
func TestScenarios(t *testing.T) {
	scenarios, err := Load(os.DirFS("scenarios"))
	if err != nil {
		t.Fatal(err)
	}
	options := Options{
		Daemon:   daemonCommand(t),
		Bound:    20 * time.Second,
		Patience: 5 * time.Second,
		Folder:   shortFolder(),
		Keep:     os.Getenv(envKeep) != "",
	}
	if underRace {
		options.Bound, options.Patience = 60*time.Second, 20*time.Second
	}
	for _, s := range scenarios {
		t.Run(s.Name, func(t *testing.T) {
			if reason, ok := LeftOut(s.Name); ok && os.Getenv(envAll) == "" {
				t.Skip(reason)
			}
			t.Parallel()
			result, err := Run(t.Context(), s, options)
			if err != nil {
				t.Fatal(err)
			}
			if result.Folder != "" {
				t.Logf("kept %s", result.Folder)
			}
			if difference := Compare(s, result.Outcomes); difference != nil {
				if result.Stderr != "" {
					difference = append(difference, "daemon said: "+result.Stderr)
				}
				t.Errorf("%s\n%s", s.Intent, strings.Join(difference, "\n"))
			}
		})
	}
}

// shortFolder is where sockets may be made: t.TempDir has the name of the
// test in it, and is too long for that.
func shortFolder() string {
	if folder := os.TempDir(); len(folder) <= maxFolder-30 {
		return folder
	}
	return "/tmp"
}

// daemonCommand is the daemon to test. It is built with the race detector if
// the test was.
func daemonCommand(t *testing.T) []string {
	t.Helper()
	if prefix := os.Getenv(envDaemon); prefix != "" {
		command, err := SplitCommand(prefix)
		if err != nil || len(command) == 0 {
			t.Fatalf("%s: no command in %q: %v", envDaemon, prefix, err)
		}
		return command
	}
	program := filepath.Join(t.TempDir(), "blkmirrord")
	arguments := []string{"build", "-o", program}
	if underRace {
		arguments = append(arguments, "-race")
	}
	arguments = append(arguments, "github.com/blkmirror/blkmirror/cmd/blkmirrord")
	output, err := exec.CommandContext(t.Context(), "go", arguments...).CombinedOutput()
	if err != nil {
		t.Fatalf("cannot build the daemon: %v\n%s\nset %s to test another one", err, output, envDaemon)
	}
	return []string{program}
}
