// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"bytes"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"testing"
)

// process is a program that runs beside the test, and never longer.
type process struct {
	cmd    *exec.Cmd
	ended  chan struct{}
	stderr output
}

// output is what a process complains of.
type output struct {
	mu struct {
		sync.Mutex
		bytes.Buffer
	}
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.mu.Write(p)
}

// launch starts a program; read reads its output until that ends.
func launch(t testing.TB, cmd *exec.Cmd, read func()) *process {
	t.Helper()
	p := &process{cmd: cmd, ended: make(chan struct{})}
	cmd.Stderr = &p.stderr
	// It ends with the tests, even if they are killed. The kernel takes the thread for the parent, so the thread stays.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err != nil {
			return
		}
		defer close(p.ended)
		read()
		_ = cmd.Wait() // the state says the same
	}()
	must(t, <-started)
	return p
}

func (p *process) signal(s os.Signal) error { return p.cmd.Process.Signal(s) }

// wait waits for the end and gives the exit status.
func (p *process) wait() int {
	<-p.ended
	return p.cmd.ProcessState.ExitCode()
}

func (p *process) said() string {
	p.stderr.mu.Lock()
	defer p.stderr.mu.Unlock()
	return p.stderr.mu.String()
}
