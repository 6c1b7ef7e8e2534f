// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// A Go program cannot fork, so --daemonize starts the program once more, in a session of its own. The child says over a pipe
// that everything runs; until then its errors go where those of the parent go.

// backgroundEnv tells a child that it is one, and the descriptor to report on.
const backgroundEnv = "BLKMIRRORD_READY_FD"

func isBackground() bool { return os.Getenv(backgroundEnv) != "" }

// startBackground starts the child, waits until it runs or has failed, and returns the exit status.
func startBackground(args []string, stderr io.Writer) int {
	fail := func(err error) int {
		fmt.Fprintf(stderr, "blkmirrord: --daemonize: %s\n", err)
		return 1
	}
	program, err := os.Executable()
	if err != nil {
		return fail(err)
	}
	ready, report, err := os.Pipe()
	if err != nil {
		return fail(err)
	}
	defer ready.Close()
	child := exec.Command(program, args...)
	child.Stderr = os.Stderr
	child.ExtraFiles = []*os.File{report}
	child.Env = append(os.Environ(), backgroundEnv+"=3")
	child.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := child.Start(); err != nil {
		return fail(err)
	}
	_ = report.Close()
	if n, _ := ready.Read(make([]byte, 1)); n == 1 {
		return 0
	}
	if err := child.Wait(); err == nil {
		return fail(errors.New("the daemon ended before it was ready"))
	}
	return 1 // it has said why
}

// reportReady tells the parent that everything runs, and lets go of its terminal and directory.
func reportReady() error {
	fd, err := strconv.Atoi(os.Getenv(backgroundEnv))
	if err != nil {
		return fmt.Errorf("--daemonize: %w", err)
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	for _, standard := range []int{0, 1, 2} {
		if err := unix.Dup3(int(null.Fd()), standard, 0); err != nil {
			return err
		}
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	report := os.NewFile(uintptr(fd), "ready")
	defer report.Close()
	_, err = report.Write([]byte{1})
	return err
}

// pidFile is a file with the process id, locked while the process lives.
type pidFile struct {
	path string
	file *os.File
}

func writePIDFile(path string) (*pidFile, error) {
	path, err := filepath.Abs(path) // in the background, the folder is another one when the file is removed
	if err != nil {
		return nil, fmt.Errorf("--pidfile: %w", err)
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, fmt.Errorf("--pidfile: %w", err)
	}
	lock := unix.Flock_t{Type: unix.F_WRLCK}
	if err = unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &lock); err != nil {
		err = fmt.Errorf("--pidfile %s: another process holds it: %w", path, err)
	} else if err = f.Truncate(0); err == nil {
		_, err = fmt.Fprintf(f, "%d\n", os.Getpid())
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return &pidFile{path, f}, nil
}

func (p *pidFile) remove() {
	_ = os.Remove(p.path)
	_ = p.file.Close()
}
