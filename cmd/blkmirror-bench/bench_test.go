// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/blkmirror/blkmirror/cmd/blkmirror-bench/result"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// buildDaemon builds the daemon.
func buildDaemon(t *testing.T) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), "blkmirrord")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", program, "github.com/blkmirror/blkmirror/cmd/blkmirrord")
	if text, err := build.CombinedOutput(); err != nil {
		t.Fatalf("cannot build the daemon: %v\n%s", err, text)
	}
	return program
}

// TestBench runs every scenario once, as small as it gets, and then what grows.
func TestBench(t *testing.T) {
	if testing.Short() {
		t.Skip("builds and runs the daemon")
	}
	daemon := buildDaemon(t)
	for _, mode := range []string{"scenarios", "growth"} {
		t.Run(mode, func(t *testing.T) {
			folder, err := os.MkdirTemp("", "bmt") // a name that leaves room for sockets
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { os.RemoveAll(folder) })
			file := filepath.Join(t.TempDir(), "result.json")
			args := []string{"--daemon", "ours=" + daemon, "--dir", folder, "--scale", "0.001", "--rounds", "1", "--seconds", "0.05",
				"--load", "own", "--json", file, "--timeout", "2m"}
			plots := t.TempDir()
			if mode == "growth" {
				args = append(args, "--growth", "--plots", plots)
			}
			s, err := parseFlags(args, nil)
			if err != nil {
				t.Fatal(err)
			}
			var out, progress bytes.Buffer
			if err := run(t.Context(), s, &out, &progress); err != nil {
				t.Fatalf("%v\n%s", err, progress.String())
			}
			checkReport(t, file, mode)
			if left, err := os.ReadDir(folder); err != nil || len(left) > 0 {
				t.Errorf("%v, left behind: %v", err, left)
			}
			if drawn, err := filepath.Glob(filepath.Join(plots, "growth-*.svg")); mode == "growth" && (err != nil || len(drawn) != 9) {
				t.Errorf("%d plots: %q, %v", len(drawn), drawn, err)
			}
		})
	}
}

func checkReport(t *testing.T, file, mode string) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var report result.Report
	if err := json.Unmarshal(text, &report); err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, c := range report.Cases {
		seen[c.Scenario] = true
		for _, r := range c.Rows {
			switch {
			case r.Status == result.NotSupported && c.Scenario == "S9":
			case r.Status != result.OK || len(r.Samples) == 0:
				t.Errorf("%s %s: %+v", c.Scenario, c.Name, r)
			case c.Verifies && r.Verified != len(r.Samples):
				t.Errorf("%s %s: %d of %d verified", c.Scenario, c.Name, r.Verified, len(r.Samples))
			default:
				for _, m := range c.Metrics {
					if _, ok := r.Summary(m); !ok {
						t.Errorf("%s %s: no %s", c.Scenario, c.Name, m.Name)
					}
				}
			}
		}
	}
	if mode == "growth" {
		for _, g := range growths {
			if !seen[g.id] {
				t.Errorf("%s did not run", g.id)
			}
		}
		return
	}
	for _, sc := range scenarios {
		if !seen[sc.id] && sc.id != "S9" { // which needs qemu-img
			t.Errorf("%s did not run", sc.id)
		}
	}
}

// TestBenchFindsAWrongByte gives the program a daemon that spoils one byte of the target behind its back.
func TestBenchFindsAWrongByte(t *testing.T) {
	if testing.Short() {
		t.Skip("builds and runs the daemon")
	}
	daemon := buildDaemon(t)
	folder, err := os.MkdirTemp("", "bmt")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(folder) })
	spoiler := filepath.Join(folder, "spoiler")
	script := "#!/bin/sh\n'" + daemon + "' \"$@\" || exit\nprintf X | dd of=\"$(echo '" + folder + "'/bm-*/target.raw)\" bs=1 seek=3333333 conv=notrunc\n"
	if err := os.WriteFile(spoiler, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	s, err := parseFlags([]string{"--daemon", "spoiled=" + spoiler, "--dir", folder, "--scale", "0.001", "--rounds", "1", "--only", "S1", "--case", "page"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	var out, progress bytes.Buffer
	err = run(t.Context(), s, &out, &progress)
	if err == nil || !strings.Contains(err.Error(), errDiffers.Error()) {
		t.Errorf("error %v, want one that says that the target differs\n%s", err, progress.String())
	}
}

func TestBenchWithoutDaemon(t *testing.T) {
	s, err := parseFlags([]string{"--daemon", "ours=/nonexistent/daemon"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := run(t.Context(), s, &out, &out); err == nil || !strings.Contains(err.Error(), "ours") {
		t.Errorf("error %v", err)
	}
}
