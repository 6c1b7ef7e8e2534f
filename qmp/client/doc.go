// SPDX-License-Identifier: Apache-2.0

// Package client talks to a QMP server: this daemon, qemu-storage-daemon, or
// QEMU itself.
//
//	c, err := client.Dial(ctx, "unix", "/run/blkmirror.qmp", client.Options{})
//	...
//	defer c.Close()
//	var jobs []api.JobInfo
//	err = c.Execute(ctx, "query-jobs", nil, &jobs)
//
// Any number of goroutines may execute commands at once; the server answers
// them in order. A command that the server refuses is a *qmp.Error; any other
// error of Execute, except that of its context, means that the connection is
// over. Cancelling the context of a command stops waiting for it; the server
// still carries it out.
//
// Events go into a bounded channel. What does not fit is dropped and counted,
// since a reader that is too slow must not stop the replies.
package client
