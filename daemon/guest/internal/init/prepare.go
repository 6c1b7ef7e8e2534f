// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// prepare makes of a bare kernel a system with a disk.
func prepare() error {
	for _, fs := range []struct{ kind, at string }{{"devtmpfs", "/dev"}, {"sysfs", "/sys"}} {
		if err := os.MkdirAll(fs.at, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(fs.kind, fs.at, fs.kind, 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", fs.at, err)
		}
	}
	// An echo would come in the middle of our lines.
	console, err := unix.IoctlGetTermios(0, unix.TCGETS)
	if err != nil {
		return fmt.Errorf("console: %w", err)
	}
	console.Lflag &^= unix.ECHO
	if err := unix.IoctlSetTermios(0, unix.TCSETS, console); err != nil {
		return fmt.Errorf("console: %w", err)
	}
	// Their names are numbered in the order in which they need each other.
	modules, err := filepath.Glob("/modules/*.ko")
	if err != nil {
		return err
	}
	for _, path := range modules {
		if err := load(path); err != nil {
			return fmt.Errorf("module %s: %w", path, err)
		}
	}
	return nil
}

func load(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.FinitModule(int(f.Fd()), "", 0)
}
