// SPDX-License-Identifier: Apache-2.0

// Package hosts tests a mirror between two hosts. Each host is a network namespace; a link joins the two, and over it the
// daemon of one mirrors a disk, in TLS with certificates on both sides, to the daemon of the other, while a guest writes:
//
//	guest ══ unix ══► source daemon          target daemon ──► dst.img
//	                    │      │                  ▲
//	                    ▼      └─ nbd, x509 ══════╝
//	                 src.img            link: a pair of Ethernet devices, or a wire
//
// The target daemon is killed and started again, the link is cut, delays, loses or swallows packets, the target's disk runs
// full. After each of these the mirror is brought to its end, and it is shown that the guest saw no error, that every write
// that it was told to be done is on the disk that it ends with, that the copy is one to the byte, and that the events told
// the operator what happened.
//
// A wire is a link of this package's own: it carries packets between two TUN devices, so that delay and loss need no help
// from the kernel. Nothing here leaves a trace, even if the tests are killed: a namespace without a name ends with its last
// process.
//
// Network namespaces need root and the program ip; without them the tests are skipped. Only a few of them run unless the
// environment variable BLKMIRROR_INTEROP is set, as `make interop` does. BLKMIRROR_DAEMON names a daemon to test in place
// of one that is built.
//
// The package has nothing but tests.
package hosts
