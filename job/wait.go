// SPDX-License-Identifier: Apache-2.0

package job

import (
	"context"
	"errors"

	"github.com/blkmirror/blkmirror/block"
)

// Others may hold the graph, or drain the nodes of a job, for as long as they like. While a body waits for them nothing of the job
// is in flight that it could not bring to an end, so it can be paused: the wait ends, the job pauses, and after that the body looks
// again at what there is to do.

// ErrPause ends a wait because the job is to pause. The body does that next.
var ErrPause = errors.New("the job is to pause")

// Wait is a wait of the body that ends when the job is to pause or was cancelled.
type Wait struct {
	cause   func() error
	cancel  context.CancelCauseFunc
	stop    chan struct{} // closed when the wait is over
	watched chan struct{} // closed when nobody ends the context any more; nil when that was waited for
}

// BeginWait begins one, and returns the context to wait under. The token of Wake is used up meanwhile, and given back.
func (j *Job) BeginWait(ctx context.Context) (context.Context, *Wait) {
	ctx, cancel := context.WithCancelCause(ctx)
	w := &Wait{cause: func() error { return context.Cause(ctx) }, cancel: cancel, stop: make(chan struct{}), watched: make(chan struct{})}
	go func() {
		defer close(w.watched)
		defer j.Poke()
		for !j.PauseWanted() {
			select {
			case <-j.Wake():
			case <-w.stop:
				return
			}
		}
		cancel(ErrPause)
	}()
	return ctx, w
}

// Over says that the wait is over; its context stays as it is from now on. The error is why it ended, if it did not end well.
func (w *Wait) Over() error {
	if w.watched != nil {
		close(w.stop)
		<-w.watched
		w.watched = nil
	}
	return w.cause()
}

// End gives up what the wait took.
func (w *Wait) End() {
	_ = w.Over()
	w.cancel(nil)
}

// Enter passes a gate, unless the job is to pause before it is let in: then the error is ErrPause.
func (j *Job) Enter(ctx context.Context, gate *block.Gate) error {
	if gate.TryEnter() {
		return nil
	}
	ctx, w := j.BeginWait(ctx)
	defer w.End()
	return gate.Enter(ctx)
}
