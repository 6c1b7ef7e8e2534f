// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"os"
	"os/exec"
	"runtime"
	"syscall"
)

// process is a daemon under test. It leads a process group of its own, so
// that whatever a wrapper around the daemon started ends with it.
type process struct {
	os     *os.Process
	exited chan struct{} // closed when the process was waited for
	status int           // valid then: exit status, or minus a signal's number
}

// startProcess starts a command whose output goes to a file.
func startProcess(command []string, output *os.File) (*process, error) {
	p := &process{exited: make(chan struct{})}
	started := make(chan error)
	go func() {
		// The kernel sends Pdeathsig when the *thread* that forked ends, so
		// the thread has to stay as long as the daemon does.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		cmd := exec.Command(command[0], command[1:]...)
		cmd.Stdout, cmd.Stderr = output, output
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
		if err := cmd.Start(); err != nil {
			started <- err
			return
		}
		p.os = cmd.Process
		started <- nil
		_ = cmd.Wait() // its error says no more than the state does
		if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && status.Signaled() {
			p.status = -int(status.Signal())
		} else {
			p.status = cmd.ProcessState.ExitCode()
		}
		close(p.exited)
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return p, nil
}

func (p *process) running() bool {
	select {
	case <-p.exited:
		return false
	default:
		return true
	}
}

// kill ends the whole group. It does not wait.
func (p *process) kill() {
	if p.running() {
		// The group is gone only if the process is, and then all is well.
		_ = syscall.Kill(-p.os.Pid, syscall.SIGKILL)
	}
}
