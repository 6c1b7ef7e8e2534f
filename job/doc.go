// SPDX-License-Identifier: Apache-2.0

// Package job runs long work that an operator steers: a [Job] has an id, a state, a progress and verbs.
//
// The states and the way through them (docs/jobs.md has the table, made from the one in status.go):
//
//	created → running ⇄ paused        running → ready ⇄ standby
//	running, ready → waiting → pending → concluded → null
//	almost any → aborting → concluded → null
//
// What a kind of job does is a [Body]; the package knows nothing of any one kind. One goroutine drives each job: it runs
// the body, and the body asks at its checkpoints whether to pause. A verb checks whether the state allows it and notes
// what the operator wants before it returns; whatever the job does about it, and the events that come of that, wait for
// the function that the verb hands to its After argument, which a monitor calls once its reply is on the way.
//
// The package does no I/O, keeps no log and knows no protocol.
package job
