// SPDX-License-Identifier: Apache-2.0

package job

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/blkmirror/blkmirror/block"
)

// Body is what one kind of job does. The job's goroutine calls Run, then Clean.
type Body interface {
	// Run does the work. It calls the job's Checkpoint where it can pause, Ready when it has caught up, Pending when its
	// work is done, and returns nil only after that. ctx ends when the job is cancelled by force.
	Run(ctx context.Context, j *Job) error
	// Clean gives up everything that Run and the start of the job took; err is what Run returned. The job is aborting
	// then, if err is not nil. What could not be given up becomes part of why the job failed.
	Clean(err error) error
}

// Config describes a new job.
type Config struct {
	ID           string
	Type         string
	BlockJob     bool // answers to block-job verbs and sends block-job events
	Speed        int64
	AutoFinalize bool
	AutoDismiss  bool
	Wanted       Wanted // of a job that goes on where another one was
	Body         Body
}

// Wanted is what operators asked of a job that it has not done yet.
type Wanted struct {
	Paused   bool // by an operator, not by an error
	Complete bool // that it ends well, once it is ready
	Softly   bool // with Complete: without what the job is for
	Finalize bool
}

// ErrCancelled ends a job that was cancelled by force.
var ErrCancelled = errors.New("Operation canceled")

// Job is one job.
type Job struct {
	config   Config
	registry *Registry
	ctx      context.Context
	cancel   context.CancelCauseFunc
	wake     chan struct{} // has a token when the body has reason to look around
	over     chan struct{} // closed when the job is concluded
	Progress Progress

	mu struct {
		sync.Mutex
		status    Status
		speed     int64
		paused    bool // wanted by the operator or by an error
		ioStatus  IOStatus
		stopped   bool // the last pause was an error's
		busy      bool
		completes completion    // what the operator wants at the end
		armed     bool          // the reply to that request is on its way
		cancelled bool          // by force, before committed
		committed bool          // too late to cancel
		finalizes bool          // the operator wants a pending job to end
		finalize  bool          // the reply to that is on its way
		resumed   chan struct{} // closed when paused ends; nil while nobody waits
		err       error
	}
}

// completion is how an operator wants a ready job to end.
type completion uint8

const (
	completeNot  completion = iota
	completeFull            // do what the job is for, such as switching to the target
	completeSoft            // stop with a consistent result
)

// ID is the name of the job.
func (j *Job) ID() string { return j.config.ID }

// Body is the job's body.
func (j *Job) Body() Body { return j.config.Body }

// Wake has a token whenever the body has reason to look around: a verb, or somebody's Poke.
func (j *Job) Wake() <-chan struct{} { return j.wake }

// Poke puts a token into Wake.
func (j *Job) Poke() {
	select {
	case j.wake <- struct{}{}:
	default:
	}
}

// Info is a snapshot of the job.
func (j *Job) Info() Info {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.infoLocked()
}

func (j *Job) infoLocked() Info {
	current, total := j.Progress.Read()
	i := Info{ID: j.config.ID, Type: j.config.Type, Status: j.mu.status, Current: current, Total: total, Speed: j.mu.speed,
		Paused: j.mu.paused || j.mu.status == Pending, Busy: j.mu.busy, IOStatus: j.mu.ioStatus,
		AutoFinalize: j.config.AutoFinalize, AutoDismiss: j.config.AutoDismiss, BlockJob: j.config.BlockJob}
	if j.mu.err != nil {
		i.Error = ErrorText(j.mu.err)
	}
	return i
}

// ErrorText is how a job's failure reads: the kind of an I/O error, any other error in full.
func ErrorText(err error) string {
	var e *block.Error
	if errors.As(err, &e) && e.Op != block.OpGraph && e.Op != block.OpOpen {
		return e.Kind.String()
	}
	return err.Error()
}

// Speed is the limit in bytes per second, 0 for none.
func (j *Job) Speed() int64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.mu.speed
}

// Wanted is what operators asked of the job, whether or not the reply to that is on its way.
func (j *Job) Wanted() Wanted {
	j.mu.Lock()
	defer j.mu.Unlock()
	return Wanted{Paused: j.mu.paused && j.mu.ioStatus == IOOK, Complete: j.mu.completes != completeNot,
		Softly: j.mu.completes == completeSoft, Finalize: j.mu.finalizes}
}

// wantLocked has completion and finalize wanted as they were.
func (j *Job) wantLocked(w Wanted) {
	j.mu.completes, j.mu.finalizes = completeNot, w.Finalize
	switch {
	case w.Softly:
		j.mu.completes = completeSoft
	case w.Complete:
		j.mu.completes = completeFull
	}
}

// TakeBack has a request to complete or to finalize forgotten that is not going to be answered well; was is what was wanted before.
// What its verb gave to After must not be carried out.
func (j *Job) TakeBack(was Wanted) {
	j.mu.Lock()
	j.wantLocked(was)
	j.mu.Unlock()
}

// SetBusy says whether the body is at work.
func (j *Job) SetBusy(busy bool) {
	j.mu.Lock()
	j.mu.busy = busy
	j.mu.Unlock()
}

// moveLocked goes to the next state and tells it. A transition that is not in the table is a bug.
func (j *Job) moveLocked(to Status) {
	if !slices.Contains(transitions[j.mu.status], to) {
		panic(fmt.Sprintf("job: no way from %s to %s", j.mu.status, to))
	}
	j.mu.status = to
	j.registry.events.StatusChanged(j.config.ID, to)
}

// run drives the job from its start to its end.
func (j *Job) run() {
	defer j.registry.workers.Done()
	err := j.config.Body.Run(j.ctx, j)
	j.mu.Lock()
	if j.mu.cancelled {
		err = ErrCancelled
	}
	j.mu.committed = true
	if err != nil {
		j.mu.err = err
		j.mu.busy = false
		j.moveLocked(Aborting)
	}
	j.mu.Unlock()
	if unclean := j.config.Body.Clean(err); unclean != nil {
		j.mu.Lock()
		j.mu.err = errors.Join(j.mu.err, unclean)
		j.mu.Unlock()
	}
	j.cancel(nil)
	j.conclude()
}

func (j *Job) conclude() {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.config.BlockJob {
		if j.mu.cancelled {
			j.registry.events.Cancelled(j.infoLocked())
		} else {
			j.registry.events.Completed(j.infoLocked())
		}
	}
	j.moveLocked(Concluded)
	close(j.over)
	if j.config.AutoDismiss {
		j.dismissLocked()
	}
}

func (j *Job) dismissLocked() {
	j.registry.remove(j)
	j.moveLocked(Null)
}

// Done is closed when the job is concluded.
func (j *Job) Done() <-chan struct{} { return j.over }

// Err is why the job failed, nil if it did not.
func (j *Job) Err() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.mu.err
}
