// SPDX-License-Identifier: Apache-2.0

// Package fault is the node driver 'blkdebug': it passes requests on, but for those that its rules make fail or wait.
//
// A rule says which requests it is for (kind, a sector that they must touch, the state of the node) and what becomes of
// them: an error, a delay, or both. A rule can be for one request only. A node has a state, a number that begins at 1;
// events change it, and rules may be for one state.
//
//	inject-error: event none, iotype write, sector 1024, errno 5, once     the next write that touches sector 1024 fails
//
// The event "none" is there all the time. "pwritev", "pwritev_zero" and "pwritev_done" happen when the node writes,
// "read_aio" and "write_aio" when a raw node above it reads and writes data; other image formats have more. A rule for an
// event is active from then on until another event happens that has rules.
//
// The driver can also pretend to have limits: a request alignment, a largest transfer.
package fault
