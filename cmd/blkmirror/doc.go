// SPDX-License-Identifier: Apache-2.0

// Command blkmirror is the client of blkmirrord: it starts, watches and ends
// mirrors, lists nodes, exports and jobs, and sends any other QMP command.
//
// It holds one connection for as long as it runs, and no state between two
// runs. What it prints is for people, with --json for programs; the exit
// status is for both, and does not change from release to release (exit.go).
//
// Packages follow and progress, below it, are of use to other programs that
// start mirrors. The client does not talk NBD, and does not start a daemon.
package main
