// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// build builds the daemon, once for all tests.
var build = sync.OnceValues(func() (program string, err error) {
	folder, err := os.MkdirTemp("", "bmt")
	if err != nil {
		return "", err
	}
	program = filepath.Join(folder, "blkmirrord")
	cmd := exec.Command("go", "build", "-o", program, "github.com/blkmirror/blkmirror/cmd/blkmirrord")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if output, e := cmd.CombinedOutput(); e != nil {
		err = fmt.Errorf("cannot build the daemon: %w: %s", e, output)
	}
	return program, err
})

func TestMain(m *testing.M) {
	code := m.Run()
	if program, _ := build(); program != "" {
		os.RemoveAll(filepath.Dir(program))
	}
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// tried gives settings with a daemon that was built for the tests.
func tried(t *testing.T, args ...string) (*settings, *bytes.Buffer) {
	t.Helper()
	if testing.Short() {
		t.Skip("builds and runs the daemon")
	}
	program, err := build()
	must(t, err)
	folder, err := os.MkdirTemp("", "bmt") // a name that leaves room for sockets
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(folder) })
	var out bytes.Buffer
	s, err := parseFlags(append(args, "--daemon", program, "--dir", folder), &out)
	must(t, err)
	return s, &out
}

func TestRounds(t *testing.T) {
	s, out := tried(t, "--count", "6", "-j", "2")
	err := runRounds(t.Context(), s)
	t.Log(out)
	must(t, err)
	if !strings.Contains(out.String(), "6 rounds in") {
		t.Error("it does not say how many rounds there were")
	}
	if left, err := filepath.Glob(filepath.Join(s.folder, "torture-*")); err != nil || len(left) > 0 {
		t.Errorf("%v, left behind: %v", err, left)
	}
}

// A byte of either image that is not as it must be is found.
func TestRoundFindsAWrongByte(t *testing.T) {
	s, _ := tried(t)
	p := newPlan(1, abilities{})
	p.end, p.steps, p.after, p.sourceRules, p.targetRules = endHeld, nil, nil, nil, nil
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	r, err := newRound(s, p, newCounts(), t.Logf)
	must(t, err)
	defer func() { must(t, r.end(false)) }()
	must(t, r.run(ctx))
	must(t, r.verify(ctx))
	for _, image := range []string{r.path("source"), r.image} {
		// After the mirror had ended guests wrote to the target alone, so not all of the source is compared.
		at := int64(0)
		for r.model.marked(at / sectorSize) {
			at += sectorSize
		}
		f, err := os.OpenFile(image, os.O_RDWR, 0)
		must(t, err)
		defer f.Close()
		var was [1]byte
		_, err = f.ReadAt(was[:], at)
		must(t, err)
		_, err = f.WriteAt([]byte{was[0] ^ 1}, at)
		must(t, err)
		if err := r.verify(ctx); err == nil {
			t.Errorf("a wrong byte of %s passes", image)
		}
		_, err = f.WriteAt(was[:], at)
		must(t, err)
	}
	must(t, r.verify(ctx))
	log, err := os.OpenFile(r.path("daemon.log"), os.O_APPEND|os.O_WRONLY, 0)
	must(t, err)
	defer log.Close()
	_, err = log.WriteString("panic: index out of range\n")
	must(t, err)
	if err := r.verify(ctx); err == nil || !strings.Contains(err.Error(), "panic") {
		t.Errorf("a panic passes: %v", err)
	}
}

func TestCancel(t *testing.T) {
	s, out := tried(t, "cancel", "--count", "60")
	err := runCancel(t.Context(), s)
	t.Log(out)
	must(t, err)
}
