// SPDX-License-Identifier: Apache-2.0

// Landlock does not see multipath TCP, which listeners would otherwise speak.
//
//go:debug multipathtcp=0

// Command blkmirrord is the storage daemon; see package daemon and --help.
package main

import (
	"os"

	"github.com/blkmirror/blkmirror/daemon"
)

func main() { os.Exit(daemon.Main(os.Args[1:], os.Stdout, os.Stderr)) }
