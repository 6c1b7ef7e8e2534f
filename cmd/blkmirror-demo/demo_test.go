// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// buildDaemon builds the daemon, with the race detector if the test has it.
func buildDaemon(t *testing.T) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), "blkmirrord")
	args := []string{"build", "-o", program}
	if underRace {
		args = append(args, "-race")
	}
	args = append(args, "github.com/blkmirror/blkmirror/cmd/blkmirrord")
	if output, err := exec.CommandContext(t.Context(), "go", args...).CombinedOutput(); err != nil {
		t.Fatalf("cannot build the daemon: %v\n%s", err, output)
	}
	return program
}

// small are the settings of a demonstration that takes two seconds.
func small(t *testing.T, daemon string) (*settings, string) {
	t.Helper()
	folder, err := os.MkdirTemp("", "bmd") // a name that leaves room for sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(folder) })
	s, err := parseFlags([]string{"--daemon", daemon, "--dir", folder, "--size", "64M", "--data", "12M", "--pieces", "200", "--seconds", "2"})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("seed %d", s.seed)
	return s, folder
}

func TestDemo(t *testing.T) {
	if testing.Short() {
		t.Skip("builds and runs the daemon")
	}
	s, folder := small(t, buildDaemon(t))
	var out bytes.Buffer
	if err := run(t.Context(), s, &out); err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	for _, want := range []string{"mirror: ready", "The mirror: copied ", "Allocated by the target: ", "on the target", "The copy is right: all 67108864 bytes"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
	if left, err := os.ReadDir(folder); err != nil || len(left) > 0 {
		t.Errorf("%v, left behind: %v", err, left)
	}
}

// TestDemoFindsAWrongByte gives the demonstration a daemon that spoils one
// byte of the target behind its back.
func TestDemoFindsAWrongByte(t *testing.T) {
	if testing.Short() {
		t.Skip("builds and runs the daemon")
	}
	daemon := buildDaemon(t)
	spoiler := filepath.Join(t.TempDir(), "spoiler")
	s, folder := small(t, spoiler)
	script := fmt.Sprintf(`#!/bin/sh
'%s' "$@" || exit
printf X | dd of="$(echo '%s'/*/target.img)" bs=1 seek=33333333 conv=notrunc
`, daemon, folder)
	if err := os.WriteFile(spoiler, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	err := run(t.Context(), s, &out)
	if wrong, ok := errors.AsType[*mismatch](err); !ok || wrong.sector != 33333333/sectorSize {
		t.Errorf("error %v, want one about sector %d", err, 33333333/sectorSize)
	}
	if strings.Contains(out.String(), "The copy is right") {
		t.Errorf("it says that the copy is right:\n%s", out.String())
	}
}

// TestDemoFails gives the demonstration daemons that are of no use.
func TestDemoFails(t *testing.T) {
	for name, test := range map[string]struct{ daemon, want string }{
		"no daemon":          {"/nonexistent/blkmirrord", "cannot start the daemon"},
		"a daemon that ends": {"/bin/false", "the daemon ended"},
	} {
		t.Run(name, func(t *testing.T) {
			s, folder := small(t, test.daemon)
			err := run(t.Context(), s, &bytes.Buffer{})
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want one with %q", err, test.want)
			}
			if left, err := os.ReadDir(folder); err != nil || len(left) > 0 {
				t.Errorf("%v, left behind: %v", err, left)
			}
		})
	}
}

// TestDemoInterrupted checks that nothing is left behind.
func TestDemoInterrupted(t *testing.T) {
	if testing.Short() {
		t.Skip("builds and runs the daemon")
	}
	s, folder := small(t, buildDaemon(t))
	s.time = time.Hour
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	out := writerFunc(func(text []byte) (int, error) {
		if bytes.Contains(text, []byte("The guest writes")) {
			cancel()
		}
		return len(text), nil
	})
	if err := run(ctx, s, out); err == nil {
		t.Error("no error")
	}
	if left, err := os.ReadDir(folder); err != nil || len(left) > 0 {
		t.Errorf("%v, left behind: %v", err, left)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(text []byte) (int, error) { return f(text) }

func TestFlags(t *testing.T) {
	for _, args := range [][]string{{"x"}, {"--size", "1K"}, {"--size", "4194305"}, {"--rate", "0"}, {"--seconds", "0"}, {"--seconds", "-1"},
		{"--pieces", "0"}, {"--depth", "0"}, {"--size", "big"}} {
		if _, err := parseFlags(args); err == nil {
			t.Errorf("%q was taken", args)
		}
	}
	s, err := parseFlags([]string{"--size", "2G", "--seed", "0"})
	if err != nil || s.size != 2<<30 || s.seed != 0 {
		t.Errorf("%v: %+v", err, s)
	}
}
