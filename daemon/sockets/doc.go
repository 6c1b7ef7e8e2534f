// SPDX-License-Identifier: Apache-2.0

// Package sockets says who may connect to a socket that the daemon listens on.
//
// A local socket has permissions and a group, like any file: [Access.Apply] sets them. Listeners are made with mode 0600, so at
// no moment can somebody connect who may not. Whoever gets past them can be asked for by the kernel: [Access.Guard] takes the
// clients of some users only. It looks at the user that a client had when it connected, so a program that gives its connection
// away gives its right away.
//
// On TCP there is neither. What encrypts and proves who somebody is stands in daemon/credentials.
package sockets
