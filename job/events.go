// SPDX-License-Identifier: Apache-2.0

package job

// Info is what can be seen of a job at one moment.
type Info struct {
	ID           string
	Type         string
	Status       Status
	Current      int64 // progress made, in the unit of the job (bytes)
	Total        int64 // Current and what is known to be left
	Speed        int64 // limit, bytes per second, 0 for none
	Paused       bool  // by the operator or by an error
	Busy         bool
	IOStatus     IOStatus
	AutoFinalize bool
	AutoDismiss  bool
	Error        string // why it failed, "" if it did not
	BlockJob     bool
}

// IOStatus tells whether an error stopped the job.
type IOStatus uint8

// The values of io-status.
const (
	IOOK IOStatus = iota
	IOFailed
	IONoSpace
)

func (s IOStatus) String() string { return [...]string{"ok", "failed", "nospace"}[s] }

// Action is what a job does about a failed request.
type Action uint8

// The actions.
const (
	ActionIgnore Action = iota // try the range again
	ActionReport               // fail
	ActionStop                 // pause until the operator resumes
)

func (a Action) String() string { return [...]string{"ignore", "report", "stop"}[a] }

// Failure is a failed request of a job.
type Failure struct {
	Read   bool // a read of the source, else a write or flush of the target
	Node   string
	Off    int64 // bytes
	Len    int64 // bytes, 0 for a flush
	Err    error
	Action Action
}

// Events receives what happens to jobs, in the order in which it happens. Its methods are called under a lock of the job:
// they must not block and must not call back.
type Events interface {
	StatusChanged(id string, s Status)
	BecameReady(i Info)
	BecamePending(i Info)
	Completed(i Info)
	Cancelled(i Info)
	Failed(id string, f Failure)
}

// After takes a function that is to run once the reply of the command at hand is on its way. Nil runs it at once.
type After func(f func())

func (a After) do(f func()) {
	if a == nil {
		f()
	} else {
		a(f)
	}
}
