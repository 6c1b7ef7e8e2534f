// SPDX-License-Identifier: Apache-2.0

// Package conformance replays scenarios against a storage daemon and compares
// what it does with what was recorded from qemu-storage-daemon.
//
// A scenario is a text file of steps. Each starts a daemon, drives it through
// monitors (QMP) and guests (NBD), looks at image files, and says in lines
// that start with '<' what must come out:
//
//	# A guest's write arrives on the target
//	image src 4M 0,1M=1
//	image dst 4M
//	daemon
//	disk src src
//	disk dst dst
//	serve src
//	< guest src size 4M
//	qmp blockdev-mirror job-id=m device=src target=dst sync=full
//	< return {}
//	wait BLOCK_JOB_READY | mask=len,offset
//	< JOB_STATUS_CHANGE {"id": "m", "status": "created"}
//	...
//
// Parse reads such a file, Run carries its steps out, and Compare gives the
// differences between the recorded and the actual outcome as a readable diff.
// scenarios/README.md describes every step and filter, and what counts as
// equal: a message may have more fields than recorded, the wording of errors
// does not count, and allocated sizes have a tolerance.
//
// The package speaks QMP with plain encoding/json and NBD with nbdguest, and
// uses nothing of the daemon, so that it runs the daemon of this project and
// qemu-storage-daemon alike. It does not record outcomes, and it does not
// judge speed.
package conformance
