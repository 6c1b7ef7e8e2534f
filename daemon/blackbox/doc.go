// SPDX-License-Identifier: Apache-2.0

// Package blackbox tests the daemon as its users meet it: the built program, driven over its sockets and command line, by
// programs that know nothing of this project. qemu-img, qemu-io, nbdinfo, nbdcopy and fio are the NBD clients, socat and
// go-qemu's monitor speak QMP, strace counts system calls, and file systems of a few megabytes run full.
//
// Each test starts a daemon of its own and expects it to end in good order. A test whose program is not installed, or that
// needs rights it does not have, is skipped and says so. The environment variable BLKMIRROR_DAEMON names a daemon to test
// in place of one built for the purpose.
//
// The package has nothing but tests.
package blackbox
