// SPDX-License-Identifier: Apache-2.0

package job

import "fmt"

// Status is the state of a job.
type Status uint8

// The states.
const (
	Created   Status = iota // known, not yet running
	Running                 // at work
	Paused                  // running, but held; nothing is in flight
	Ready                   // the copy is complete and kept up to date; waits for complete
	Standby                 // ready, but held
	Waiting                 // work done, about to be finalized
	Pending                 // waits for finalize, or passes through
	Aborting                // failed or cancelled, cleaning up
	Concluded               // over; waits for dismiss, or passes through
	Null                    // gone

	numStatus
)

var statusNames = [numStatus]string{"created", "running", "paused", "ready", "standby", "waiting", "pending", "aborting",
	"concluded", "null"}

func (s Status) String() string { return statusNames[s] }

// transitions lists the states that may follow each state.
var transitions = [numStatus][]Status{
	Created:   {Running, Aborting, Null},
	Running:   {Paused, Ready, Waiting, Aborting},
	Paused:    {Running},
	Ready:     {Standby, Waiting, Aborting},
	Standby:   {Ready},
	Waiting:   {Pending, Aborting},
	Pending:   {Aborting, Concluded},
	Aborting:  {Concluded},
	Concluded: {Null},
}

// Verb is something that an operator does to a job.
type Verb uint8

// The verbs.
const (
	VerbCancel Verb = iota
	VerbPause
	VerbResume
	VerbSetSpeed
	VerbChange
	VerbComplete
	VerbFinalize
	VerbDismiss

	numVerb
)

var verbNames = [numVerb]string{"cancel", "pause", "resume", "set-speed", "change", "complete", "finalize", "dismiss"}

func (v Verb) String() string { return verbNames[v] }

var working = []Status{Created, Running, Paused, Ready, Standby}

// verbStates lists the states in which each verb is accepted.
var verbStates = [numVerb][]Status{
	VerbCancel:   {Created, Running, Paused, Ready, Standby, Waiting, Pending},
	VerbPause:    working,
	VerbResume:   working,
	VerbSetSpeed: working,
	VerbChange:   working,
	VerbComplete: {Ready, Standby},
	VerbFinalize: {Pending},
	VerbDismiss:  {Concluded},
}

// Error is a verb that was refused. NotActive marks a block-job verb for something that is no block job.
type Error struct {
	NotActive bool
	Text      string
}

func (e *Error) Error() string { return e.Text }

func refused(format string, args ...any) error { return &Error{Text: fmt.Sprintf(format, args...)} }
