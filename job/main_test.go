// SPDX-License-Identifier: Apache-2.0

package job

import (
	"context"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// recorder keeps what happens.
type recorder struct {
	mu  sync.Mutex
	log []string
}

func (r *recorder) add(what string) {
	r.mu.Lock()
	r.log = append(r.log, what)
	r.mu.Unlock()
}

func (r *recorder) StatusChanged(_ string, s Status) { r.add(s.String()) }
func (r *recorder) BecameReady(Info)                 { r.add("READY") }
func (r *recorder) BecamePending(Info)               { r.add("PENDING") }
func (r *recorder) Completed(i Info) {
	if i.Error != "" {
		r.add("COMPLETED(" + i.Error + ")")
		return
	}
	r.add("COMPLETED")
}
func (r *recorder) Cancelled(Info)             { r.add("CANCELLED") }
func (r *recorder) Failed(_ string, f Failure) { r.add("ERROR:" + f.Action.String()) }

func (r *recorder) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return strings.Join(r.log, " ")
}

// body is a job that does what a test says, and otherwise what a mirror does: ready at once, until the operator ends it.
type body struct {
	busy    func(ctx context.Context, j *Job) error // before ready
	err     error                                   // ends the job when ready
	soft    bool
	cleaned int
	failed  error
	unclean error // of Clean
}

func (b *body) Run(ctx context.Context, j *Job) error {
	if err := j.Checkpoint(ctx); err != nil {
		return err
	}
	if b.busy != nil {
		if err := b.busy(ctx, j); err != nil {
			return err
		}
	}
	j.Ready()
	pending := false
	for {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		if j.PauseWanted() && !pending {
			if err := j.Checkpoint(ctx); err != nil {
				return err
			}
		}
		if b.err != nil {
			return b.err
		}
		if wanted, _ := j.CompleteWanted(); wanted && !pending {
			pending = j.EnterPending()
		}
		if pending && j.FinalizeWanted() {
			_, b.soft = j.CompleteWanted()
			return j.Commit()
		}
		select {
		case <-j.Wake():
		case <-ctx.Done():
		}
	}
}

func (b *body) Clean(err error) error {
	b.cleaned, b.failed = b.cleaned+1, err
	return b.unclean
}

func start(t testing.TB, b *body, c Config) (*Job, *Registry, *recorder) {
	t.Helper()
	r := &recorder{}
	g := NewRegistry(r)
	if c.ID == "" {
		c.ID = "j"
	}
	c.Type, c.BlockJob, c.Body = "test", true, b
	j, err := g.Add(c)
	if err != nil {
		t.Fatal(err)
	}
	j.Start(nil)
	return j, g, r
}
