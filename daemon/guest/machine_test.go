// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/blkmirror/blkmirror/daemon/guest/internal/workload"
)

const emulator = "qemu-system-x86_64"

// machine is a running guest.
type machine struct {
	t       testing.TB
	began   time.Time
	until   time.Time // when all must be over
	process *process
	console io.WriteCloser

	mu struct {
		sync.Mutex
		progress
		changed chan struct{} // closed at the next change
		lines   []string
	}
}

// progress is what the guest has said.
type progress struct {
	synced  workload.Version // flushed
	pongs   int              // answers to ping
	stopped bool             // after synced, in good order
	failed  string           // what it complained of
	ended   bool             // nothing more will come
}

// boot starts a guest on a disk that an NBD server has on a socket. Nothing is waited for after the time until.
func boot(t testing.TB, until time.Time, k kernel, initrd, socket, export string, seed uint64) *machine {
	t.Helper()
	m := &machine{t: t, began: time.Now(), until: until}
	m.mu.changed = make(chan struct{})
	cmd := exec.Command(emulator, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-machine", "pc", "-accel", "tcg", "-cpu", "qemu64", "-smp", "1", "-m", "256",
		"-kernel", k.image, "-initrd", initrd,
		"-append", fmt.Sprintf("console=ttyS0 quiet loglevel=1 panic=-1 guest_seed=%d", seed),
		"-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console",
		"-blockdev", "driver=nbd,node-name=disk,discard=unmap,server.type=unix,server.path="+socket+",export="+export,
		"-device", "virtio-blk-pci,drive=disk")
	var err error
	m.console, err = cmd.StdinPipe()
	must(t, err)
	printed, err := cmd.StdoutPipe()
	must(t, err)
	m.process = launch(t, cmd, func() { m.listen(printed) })
	t.Cleanup(func() {
		m.kill()
		if t.Failed() {
			m.mu.Lock()
			defer m.mu.Unlock()
			t.Logf("the guest's console: %s", strings.Join(m.mu.lines[max(0, len(m.mu.lines)-40):], "\n"))
		}
	})
	return m
}

// listen reads the console to its end.
func (m *machine) listen(console io.Reader) {
	lines := bufio.NewScanner(console)
	for lines.Scan() {
		m.take(strings.TrimSpace(lines.Text()))
	}
	m.change(func(p *progress) { p.ended = true })
}

func (m *machine) change(how func(*progress)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	how(&m.mu.progress)
	close(m.mu.changed)
	m.mu.changed = make(chan struct{})
}

func (m *machine) take(line string) {
	m.mu.Lock()
	m.mu.lines = append(m.mu.lines, line)
	m.mu.Unlock()
	said, ours := strings.CutPrefix(line, "guest: ")
	if !ours {
		return // the machine's firmware and the kernel
	}
	what, rest, _ := strings.Cut(said, " ")
	var version workload.Version
	_, fault := fmt.Sscan(rest, &version)
	m.change(func(p *progress) {
		switch {
		case what == "failed":
			p.failed = rest
			return
		case fault != nil:
			p.failed = "it said " + line
			return
		case what == "pong":
			p.pongs++
		case what == "stopped":
			p.stopped = true
		}
		p.synced = version
	})
}

// await waits until the guest has said something, and gives what it said until then.
func (m *machine) await(what string, holds func(progress) bool) progress {
	m.t.Helper()
	ctx, cancel := context.WithDeadline(m.t.Context(), m.until)
	defer cancel()
	for {
		m.mu.Lock()
		now, changed := m.mu.progress, m.mu.changed
		m.mu.Unlock()
		switch {
		case now.failed != "":
			m.t.Fatalf("the guest failed: %s", now.failed)
		case holds(now):
			return now
		case now.ended:
			m.t.Fatalf("the guest ended before %s", what)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			m.t.Fatalf("it did not come about that %s; version %d is synced", what, now.synced)
		}
	}
}

// goOn waits until the guest has flushed some more groups.
func (m *machine) goOn(groups int) workload.Version {
	m.t.Helper()
	from := m.synced()
	until := from + workload.Version(groups*workload.GroupSize)
	return m.await("the guest goes on", func(p progress) bool { return p.synced >= until }).synced
}

// synced is what the guest has flushed for sure.
func (m *machine) synced() workload.Version {
	m.t.Helper()
	return m.await("the guest runs", func(p progress) bool { return !p.ended }).synced
}

// ask asks the guest how far it is. Nothing that the guest began before the call is later than the answer.
func (m *machine) ask() workload.Version {
	m.t.Helper()
	pongs := m.await("the guest runs", func(p progress) bool { return !p.ended }).pongs
	_, err := io.WriteString(m.console, "ping\n")
	must(m.t, err)
	return m.await("the guest answers", func(p progress) bool { return p.pongs > pongs }).synced
}

// stop asks the guest to switch itself off, and gives the last version, which is flushed.
func (m *machine) stop() workload.Version {
	m.t.Helper()
	_, err := io.WriteString(m.console, "stop\n")
	must(m.t, err)
	last := m.await("the guest stops", func(p progress) bool { return p.stopped }).synced
	m.await("the machine is off", func(p progress) bool { return p.ended })
	if status := m.process.wait(); status != 0 {
		m.t.Errorf("%s ended with status %d: %s", emulator, status, m.process.said())
	}
	return last
}

// kill ends the machine as a power switch does, and gives the last version of which the guest said that it is flushed.
func (m *machine) kill() workload.Version {
	_ = m.process.signal(os.Kill)
	m.process.wait()
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.mu.synced
}
