// SPDX-License-Identifier: Apache-2.0

package hosts

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

const (
	sourceAddress = "10.9.0.1"
	targetAddress = "10.9.0.2"
)

// host is a network namespace. It has no name and lives as long as anybody uses it.
type host struct {
	t  *testing.T
	ns *os.File
}

// newHost makes one with nothing but a loopback device.
func newHost(t *testing.T) *host {
	t.Helper()
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip("the program ip is not installed")
	}
	h := &host{t: t}
	made := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with this goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			h.ns, err = os.Open("/proc/thread-self/ns/net")
		}
		made <- err
	}()
	err := <-made
	if errors.Is(err, unix.EPERM) {
		t.Skip("network namespaces need root")
	}
	must(t, err)
	t.Cleanup(func() { _ = h.ns.Close() })
	h.run("ip", "link", "set", "lo", "up")
	return h
}

// enter runs f on a thread of this host, which stays until f returns and ends then.
func (h *host) enter(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked
		err := unix.Setns(int(h.ns.Fd()), unix.CLONE_NEWNET)
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

// run runs a program that must succeed.
func (h *host) run(name string, arguments ...string) {
	h.t.Helper()
	err := h.enter(func() error {
		if out, err := exec.Command(name, arguments...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s %v: %w: %s", name, arguments, err, out)
		}
		return nil
	})
	must(h.t, err)
}

// path names the namespace for programs.
func (h *host) path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), h.ns.Fd()) }

// address gives the host's device its address.
func (h *host) address(device, ip string) {
	h.t.Helper()
	h.run("ip", "address", "add", ip+"/24", "dev", device)
	h.run("ip", "link", "set", device, "up")
}

// cable joins two hosts by a pair of Ethernet devices. cut takes the device of one end down, and mend up again.
type cable struct{ end *host }

const device = "link0"

func join(t *testing.T, source, target *host) *cable {
	t.Helper()
	source.run("ip", "link", "add", device, "type", "veth", "peer", "name", device, "netns", target.path())
	source.address(device, sourceAddress)
	target.address(device, targetAddress)
	return &cable{source}
}

func (c *cable) cut()  { c.end.run("ip", "link", "set", device, "down") }
func (c *cable) mend() { c.end.run("ip", "link", "set", device, "up") }
