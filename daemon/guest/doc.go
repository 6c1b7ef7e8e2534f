// SPDX-License-Identifier: Apache-2.0

// Package guest tests the daemon with a real guest: a Linux kernel in a virtual machine of QEMU's, whose disk is an NBD export
// of ours. While the guest writes, flushes and discards, its disk is moved to another file and then to another daemon, as an
// operator would do it; then the guest is switched off, or killed, and every operation that it had flushed must be on the
// disk that it ended with.
//
//	QEMU (emulates the processor)                   daemon                         second daemon
//	  Linux, /init ── virtio-blk ── NBD ──► export ──► mirror ──► src.img
//	        │                                           └─────────► copy.img, then NBD ──► far.img
//	        └─ serial console: "guest: synced N" ──► the test
//
// What the guest writes is a function of a seed (internal/workload), so its console needs to tell only how far it is. The
// guest's only program is internal/init, packed by the test into an initial file system with the kernel's modules for virtio.
//
// It takes a minute and needs qemu-system-x86_64 and a kernel, so it runs only where the environment says so: `make interop`
// installs both and sets BLKMIRROR_INTEROP. The kernel is looked for below $BLKMIRROR_KERNEL, .cache/kernel in the repository, and
// /, as boot/vmlinuz-* and lib/modules.
//
// The environment variable BLKMIRROR_DAEMON names a daemon to test in place of one built for the purpose, and -guest.seed repeats
// what the guest wrote.
//
// The package has nothing but tests.
package guest
