// SPDX-License-Identifier: Apache-2.0

package job

import "slices"

// verb carries out what an operator asks for. decide runs under the lock, after the state was found to allow the verb,
// and returns what the job will see once the reply is on its way.
func (j *Job) verb(v Verb, after After, decide func() (effect func(), err error)) error {
	effect, err := j.decide(v, decide)
	if err != nil || effect == nil {
		return err
	}
	after.do(func() {
		effect()
		j.Poke()
	})
	return nil
}

func (j *Job) decide(v Verb, decide func() (func(), error)) (func(), error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if err := j.allowLocked(v); err != nil {
		return nil, err
	}
	return decide()
}

// allowLocked checks a verb against the state.
func (j *Job) allowLocked(v Verb) error {
	if v == VerbResume && !j.mu.paused {
		return refused("Can't resume a job that was not paused")
	}
	if !slices.Contains(verbStates[v], j.mu.status) {
		return refused("Job '%s' in state '%s' cannot accept command verb '%s'", j.config.ID, j.mu.status, v)
	}
	return nil
}

// Pause holds the job at its next checkpoint.
func (j *Job) Pause(after After) error {
	return j.verb(VerbPause, after, func() (func(), error) {
		if j.mu.paused {
			return nil, refused("Job is already paused")
		}
		j.mu.paused = true
		return func() {}, nil
	})
}

// Resume lets a paused job go on, and forgets the error that stopped it.
func (j *Job) Resume(after After) error {
	return j.verb(VerbResume, after, func() (func(), error) {
		j.mu.paused = false
		j.mu.ioStatus = IOOK
		resumed := j.mu.resumed
		j.mu.resumed = nil
		return func() {
			if resumed != nil {
				close(resumed)
			}
		}, nil
	})
}

// Cancel ends the job by force: whatever the result is worth.
func (j *Job) Cancel(after After) error {
	return j.verb(VerbCancel, after, func() (func(), error) { return j.cancelEffect, nil })
}

func (j *Job) cancelEffect() {
	j.mu.Lock()
	tooLate := j.mu.committed
	j.mu.cancelled = !tooLate
	j.mu.Unlock()
	if !tooLate {
		j.cancel(ErrCancelled)
	}
}

// SoftCancel is block-job-cancel: a ready job ends with a consistent result and nothing else; before that, or with
// force, it is Cancel.
func (j *Job) SoftCancel(force bool, after After) error {
	return j.verb(VerbCancel, after, func() (func(), error) {
		switch {
		case j.mu.paused && !force:
			return nil, refused("The block job for device '%s' is currently paused", j.config.ID)
		case force || j.mu.status != Ready && j.mu.status != Standby:
			return j.cancelEffect, nil
		}
		j.mu.completes = completeSoft
		return j.arm, nil
	})
}

// Complete makes a ready job do what it is for and end. In standby that is remembered for the resume.
func (j *Job) Complete(after After) error {
	return j.verb(VerbComplete, after, func() (func(), error) {
		if j.mu.completes == completeSoft || j.mu.completes == completeFull && j.mu.status == Ready {
			return nil, refused("The active block job '%s' cannot be completed: it is ending already", j.config.ID)
		}
		j.mu.completes = completeFull
		return j.arm, nil
	})
}

func (j *Job) arm() {
	j.mu.Lock()
	j.mu.armed = true
	j.mu.Unlock()
}

// Finalize lets a pending job end.
func (j *Job) Finalize(after After) error {
	return j.verb(VerbFinalize, after, func() (func(), error) {
		j.mu.finalizes = true
		return func() {
			j.mu.Lock()
			j.mu.finalize = true
			j.mu.Unlock()
		}, nil
	})
}

// Dismiss forgets a concluded job.
func (j *Job) Dismiss() error {
	return j.verb(VerbDismiss, nil, func() (func(), error) {
		j.dismissLocked()
		return nil, nil
	})
}

// SetSpeed sets the limit in bytes per second, 0 for none.
func (j *Job) SetSpeed(speed int64) error {
	return j.verb(VerbSetSpeed, nil, func() (func(), error) {
		if err := CheckSpeed(speed); err != nil {
			return nil, err
		}
		j.mu.speed = speed
		return func() {}, nil
	})
}

// CheckSpeed says what is wrong with a limit.
func CheckSpeed(speed int64) error {
	if speed < 0 {
		return refused("Parameter 'speed' expects a non-negative value")
	}
	return nil
}

// AllowChange says whether options of the job may be changed now.
func (j *Job) AllowChange() error {
	return j.verb(VerbChange, nil, func() (func(), error) { return nil, nil })
}
