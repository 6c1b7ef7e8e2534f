// SPDX-License-Identifier: Apache-2.0

package holders

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestLocks(t *testing.T) {
	for _, c := range []struct {
		info         string
		uses, denies Perm
	}{
		{"pos:\t0\nflags:\t02100002\n", 0, 0},
		{"lock:\t1: OFDLCK ADVISORY  READ -1 00:2d:1234 100 101\nlock:\t2: OFDLCK ADVISORY  READ -1 00:2d:1234 203 203\n", ConsistentRead | Write, Resize},
		{"lock:\t1: OFDLCK ADVISORY  READ -1 00:2d:1234 103 201\n", Resize, ConsistentRead | Write},
		{"lock:\t1: OFDLCK ADVISORY  WRITE -1 00:2d:1234 0 EOF\n", 0, 0}, // not one of these bytes
		{"lock:\t1: POSIX  ADVISORY  READ 7 00:2d:1234 100 101\n", 0, 0},
		{"lock:\t1: OFDLCK ADVISORY  READ -1 00:2d:1234 x y\nlock:\n", 0, 0},
	} {
		if uses, denies := locks([]byte(c.info)); uses != c.uses || denies != c.denies {
			t.Errorf("%q: %b and %b, want %b and %b", c.info, uses, denies, c.uses, c.denies)
		}
	}
}

// TestMain makes this program one that holds a file, too.
func TestMain(m *testing.M) {
	if path := os.Getenv("HOLD"); path != "" {
		hold(path)
		return
	}
	os.Exit(m.Run())
}

func hold(path string) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err == nil {
		err = unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_RDLCK, Start: usedBytes, Len: 2})
	}
	if err != nil {
		panic(err)
	}
	os.Stdout.WriteString("held\n")
	os.Stdin.Read(make([]byte, 1)) // until the test has seen enough
	f.Close()
}

func TestFind(t *testing.T) {
	path := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if list, err := Find(path, 0); err != nil || len(list) != 0 {
		t.Errorf("before: %v, %v", list, err)
	}
	other := exec.CommandContext(t.Context(), os.Args[0])
	other.Env = append(os.Environ(), "HOLD="+path)
	stdin, err := other.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := other.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := bufio.NewReader(stdout).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	list, err := Find(path, 0)
	if err != nil || len(list) != 1 || list[0].PID != other.Process.Pid || list[0].Uses != ConsistentRead|Write || list[0].Denies != 0 {
		t.Errorf("%+v, %v", list, err)
	} else if text := list[0].String(); !strings.HasSuffix(text, " reads, writes") {
		t.Error(text)
	}
	if list, err := Find(path, other.Process.Pid); err != nil || len(list) != 0 {
		t.Errorf("without it: %v, %v", list, err)
	}
	stdin.Close()
	if err := other.Wait(); err != nil {
		t.Error(err)
	}
	if _, err := Find(path+"x", 0); err == nil {
		t.Error("a file that is not there")
	}
}
