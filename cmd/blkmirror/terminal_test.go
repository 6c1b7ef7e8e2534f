// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// openTerminal makes a terminal of 100 columns, and returns our end and the
// name of the other one.
func openTerminal(t *testing.T) (*os.File, string) {
	t.Helper()
	terminal, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skip("no terminals here: ", err)
	}
	t.Cleanup(func() { terminal.Close() })
	fd := int(terminal.Fd())
	number, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 100}); err != nil {
		t.Fatal(err)
	}
	return terminal, fmt.Sprintf("/dev/pts/%d", number)
}

// console is a program on a terminal, and the person in front of it.
type console struct {
	t        *testing.T
	terminal *os.File
	cmd      *exec.Cmd
	changed  chan struct{} // has a token when there is more

	mu struct {
		sync.Mutex
		text bytes.Buffer // what was shown and not waited for yet
	}
}

// onConsole starts a program on a terminal of its own.
func onConsole(t *testing.T, cmd *exec.Cmd) *console {
	t.Helper()
	terminal, name := openTerminal(t)
	tty, err := os.OpenFile(name, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = tty, tty, tty
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	tty.Close()
	c := &console{t: t, terminal: terminal, cmd: cmd, changed: make(chan struct{}, 1)}
	var reading sync.WaitGroup
	reading.Go(func() { _, _ = io.Copy(c, terminal) }) // ends with an error when nobody has the other end
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		reading.Wait()
	})
	return c
}

func (c *console) Write(text []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mu.text.Write(text)
	select {
	case c.changed <- struct{}{}:
	default:
	}
	return len(text), nil
}

// see waits until a text is shown, and forgets all up to it.
func (c *console) see(want string) {
	c.t.Helper()
	deadline := time.After(40 * time.Second)
	for {
		c.mu.Lock()
		shown := c.mu.text.String()
		if i := strings.Index(shown, want); i >= 0 {
			c.mu.text.Next(i + len(want))
			c.mu.Unlock()
			return
		}
		c.mu.Unlock()
		select {
		case <-c.changed:
		case <-deadline:
			c.t.Fatalf("no %q in %q", want, shown)
		}
	}
}

// enter presses keys.
func (c *console) enter(keys string) {
	c.t.Helper()
	if _, err := io.WriteString(c.terminal, keys); err != nil {
		c.t.Fatal(err)
	}
}

// end waits for the program's end.
func (c *console) end() int {
	_ = c.cmd.Wait() // its error says no more than the status does
	return c.cmd.ProcessState.ExitCode()
}
