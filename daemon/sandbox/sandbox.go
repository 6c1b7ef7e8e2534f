// SPDX-License-Identifier: Apache-2.0

// Package sandbox confines the process to some directories for as long as it lives, with the kernel's Landlock.
//
// What [Enter] does cannot be undone, holds for all threads, and counts for every path that is opened later, whoever names it: an
// option, a command of a monitor, or an image that names a backing file. It also sets no_new_privs, so that no program that
// the process might start has more rights than it.
//
// Landlock looks at opening and at making, removing and renaming files; descriptors that are open already are not touched, and
// looking at names and attributes is not kept from anybody. Connecting to a local socket is not confined.
package sandbox

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/landlock-lsm/go-landlock/landlock"
	kernel "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"
)

// What a kernel must have: truncation of files under control, and TCP ports.
const (
	pathsABI = 3 // Linux 6.2
	tcpABI   = 4 // Linux 6.7
)

// system is what the Go runtime and its network package read by themselves, and what --daemonize opens. There are no secrets in it.
var (
	system  = []string{"/etc/hosts", "/etc/resolv.conf", "/etc/nsswitch.conf", "/etc/services", "/etc/group", "/etc/localtime", "/proc/sys/net/core/somaxconn", "/proc/sys/kernel/random/boot_id"}
	devices = []string{os.DevNull}
)

// Options say what a process may reach.
type Options struct {
	Paths    []string // directories, and files or devices, to read, write, make and remove in
	ReadOnly []string // the same, to read only
	TCP      []uint16 // ports to listen on and to connect to; nil for all
	// BestEffort goes without what the kernel lacks.
	BestEffort bool
}

// Sandbox is what a process has entered.
type Sandbox struct {
	options Options
	// Missing is what the kernel could not do, for BestEffort.
	Missing []string
}

// Enter confines the process. After an error it is not to go on.
func Enter(o Options) (*Sandbox, error) {
	s := &Sandbox{}
	var err error
	if s.options, err = resolve(o); err != nil {
		return nil, err
	}
	abi, err := kernel.LandlockGetABIVersion()
	if err != nil {
		abi = 0
	}
	if abi < pathsABI {
		s.Missing = append(s.Missing, "directories")
	}
	if o.TCP != nil && abi < tcpABI {
		s.Missing = append(s.Missing, "TCP ports")
	}
	if len(s.Missing) > 0 && !o.BestEffort {
		return nil, fmt.Errorf("--sandbox: this kernel cannot confine a process to %s (%s); Linux 6.7 with CONFIG_SECURITY_LANDLOCK and "+
			"'landlock' among the names of its boot parameter lsm= can, and --sandbox-best-effort goes without",
			strings.Join(s.Missing, " and "), describe(abi, err))
	}
	_, _ = time.Now().Zone() // reads the file of the time zone
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return nil, fmt.Errorf("--sandbox: no_new_privs: %w", err)
	}
	if err := landlock.V7.BestEffort().RestrictPaths(s.rules()...); err != nil {
		return nil, fmt.Errorf("--sandbox: %w", err)
	}
	if s.options.TCP == nil {
		return s, nil
	}
	var ports []landlock.Rule
	for _, p := range s.options.TCP {
		ports = append(ports, landlock.BindTCP(p), landlock.ConnectTCP(p))
	}
	if err := landlock.V7.BestEffort().RestrictNet(ports...); err != nil {
		return nil, fmt.Errorf("--sandbox-tcp: %w", err)
	}
	return s, nil
}

func describe(abi int, err error) string {
	if err != nil {
		return fmt.Sprintf("no Landlock: %v", err)
	}
	return fmt.Sprintf("its Landlock has version %d", abi)
}

// rules are the paths as the kernel gets them.
func (s *Sandbox) rules() []landlock.Rule {
	rules := []landlock.Rule{landlock.ROFiles(system...).IgnoreIfMissing(), landlock.RWFiles(devices...)}
	for _, p := range s.options.Paths {
		if isDir(p) {
			rules = append(rules, landlock.RWDirs(p).WithIoctlDev())
		} else {
			rules = append(rules, landlock.RWFiles(p).WithIoctlDev())
		}
	}
	for _, p := range s.options.ReadOnly {
		if isDir(p) {
			rules = append(rules, landlock.RODirs(p).WithIoctlDev())
		} else {
			rules = append(rules, landlock.ROFiles(p).WithIoctlDev())
		}
	}
	return rules
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

// resolve makes all paths absolute, which must be there.
func resolve(o Options) (Options, error) {
	for _, list := range []*[]string{&o.Paths, &o.ReadOnly} {
		var resolved []string
		for _, path := range *list {
			if path == "" {
				return o, errors.New("--sandbox: a path is empty")
			}
			real, err := filepath.EvalSymlinks(path)
			if err == nil {
				real, err = filepath.Abs(real)
			}
			if err != nil {
				return o, fmt.Errorf("--sandbox %s: %w", path, err)
			}
			resolved = append(resolved, real)
		}
		*list = resolved
	}
	return o, nil
}

// String is what the process may reach, for messages.
func (s *Sandbox) String() string {
	var parts []string
	parts = append(parts, s.options.Paths...)
	for _, p := range s.options.ReadOnly {
		parts = append(parts, p+" (read-only)")
	}
	return strings.Join(parts, ", ")
}

// Explain adds to an error of a file or socket that was out of reach what the process may reach. s may be nil.
func (s *Sandbox) Explain(err error) error {
	if s == nil || err == nil {
		return err
	}
	if errors.Is(err, syscall.EACCES) || errors.Is(err, syscall.EXDEV) {
		return fmt.Errorf("%w (the sandbox of this daemon has only: %s)", err, s)
	}
	return err
}
