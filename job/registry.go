// SPDX-License-Identifier: Apache-2.0

package job

import (
	"context"
	"slices"
	"sync"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/budget"
)

// Registry holds the jobs of one daemon.
type Registry struct {
	events  Events
	memory  *budget.Budget // for copies, of all jobs; nil for no bound
	workers sync.WaitGroup

	mu struct {
		sync.Mutex
		jobs []*Job // oldest first
		most int    // that there may be, 0 for any number
	}
}

// NewRegistry returns a registry without jobs that tells events what happens to them.
func NewRegistry(events Events) *Registry { return &Registry{events: events} }

// Limit bounds the number of jobs, those that have ended and were not dismissed included; 0 is no bound.
func (r *Registry) Limit(most int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mu.most = most
}

// CheckID says what is wrong with an id for a new job.
func (r *Registry) CheckID(id string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.checkIDLocked(id)
}

func (r *Registry) checkIDLocked(id string) error {
	if !block.WellFormedID(id) {
		return refused("Invalid job ID '%s'", id)
	}
	if r.findLocked(id) != nil {
		return refused("Job ID '%s' already in use", id)
	}
	if r.mu.most > 0 && len(r.mu.jobs) >= r.mu.most {
		return refused("There are %d jobs, and no more may be made (--max-jobs): cancel or dismiss one", r.mu.most)
	}
	return nil
}

// Find looks a job up.
func (r *Registry) Find(id string) (*Job, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if j := r.findLocked(id); j != nil {
		return j, nil
	}
	return nil, refused("Job not found")
}

func (r *Registry) findLocked(id string) *Job {
	for _, j := range r.mu.jobs {
		if j.config.ID == id {
			return j
		}
	}
	return nil
}

// FindBlockJob looks a job up that answers to block-job verbs.
func (r *Registry) FindBlockJob(id string) (*Job, error) {
	j, err := r.Find(id)
	if err != nil || !j.config.BlockJob {
		return nil, &Error{NotActive: true, Text: "Block job '" + id + "' not found"}
	}
	return j, nil
}

// Jobs lists the jobs, the oldest first.
func (r *Registry) Jobs() []*Job {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.mu.jobs)
}

// Add makes a job that nobody has heard of yet but whose id is taken. Start or Abandon follows.
func (r *Registry) Add(c Config) (*Job, error) {
	if err := CheckSpeed(c.Speed); err != nil {
		return nil, err
	}
	j := &Job{config: c, registry: r, wake: make(chan struct{}, 1), over: make(chan struct{})}
	j.ctx, j.cancel = context.WithCancelCause(context.Background())
	j.mu.speed = c.Speed
	j.wantLocked(c.Wanted) // nobody else knows the job
	j.mu.paused, j.mu.armed, j.mu.finalize = c.Wanted.Paused, c.Wanted.Complete, c.Wanted.Finalize
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.checkIDLocked(c.ID); err != nil {
		j.cancel(nil)
		return nil, err
	}
	r.mu.jobs = append(r.mu.jobs, j)
	return j, nil
}

// Start announces the job as created and running. It does its first work when after lets it.
func (j *Job) Start(after After) {
	j.registry.workers.Add(1)
	j.mu.Lock()
	j.registry.events.StatusChanged(j.config.ID, Created)
	j.moveLocked(Running)
	j.mu.Unlock()
	after.do(func() { go j.run() })
}

// Abandon forgets a job that was not started.
func (j *Job) Abandon() {
	j.cancel(nil)
	j.registry.remove(j)
}

func (r *Registry) remove(j *Job) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mu.jobs = slices.DeleteFunc(r.mu.jobs, func(other *Job) bool { return other == j })
}

// CancelAll cancels every job by force and waits until all have ended, or ctx has.
func (r *Registry) CancelAll(ctx context.Context) error {
	for _, j := range r.Jobs() {
		_ = j.Cancel(nil) // one that cannot be cancelled is at its end already
	}
	ended := make(chan struct{})
	go func() {
		r.workers.Wait()
		close(ended)
	}()
	select {
	case <-ended:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
