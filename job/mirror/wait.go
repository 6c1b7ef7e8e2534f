// SPDX-License-Identifier: Apache-2.0

package mirror

import (
	"context"
	"errors"
)

// Others may hold the graph, or drain the job, for as long as they like. While its loop waits for them nothing of the job is in
// flight that it could not bring to an end, so it can be paused: the wait ends, the job pauses, and after that the loop looks
// again at what there is to do.

// errPause ends a wait because the job is to pause. The loop does that next.
var errPause = errors.New("the job is to pause")

// wait is a wait of the loop that ends when the job is to pause or was cancelled.
type wait struct {
	ctx     context.Context
	cancel  context.CancelCauseFunc
	stop    chan struct{} // closed when the wait is over
	watched chan struct{} // closed when nobody ends ctx any more; nil when that was waited for
}

// beginWait begins one. The token of the job's Wake is used up meanwhile, and given back.
func (l *loop) beginWait(ctx context.Context) *wait {
	j := l.m.job
	w := &wait{stop: make(chan struct{}), watched: make(chan struct{})}
	w.ctx, w.cancel = context.WithCancelCause(ctx)
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
		w.cancel(errPause)
	}()
	return w
}

// over says that the wait is over; the context stays as it is from now on. The error is why it ended, if it did not end well.
func (w *wait) over() error {
	if w.watched != nil {
		close(w.stop)
		<-w.watched
		w.watched = nil
	}
	return context.Cause(w.ctx)
}

// end gives up what the wait took.
func (w *wait) end() {
	_ = w.over()
	w.cancel(nil)
}

// enter passes the job's gate.
func (l *loop) enter(ctx context.Context) error {
	gate := l.m.backend.Gate()
	if gate.TryEnter() {
		return nil
	}
	w := l.beginWait(ctx)
	defer w.end()
	return gate.Enter(w.ctx)
}

// inside runs f behind the job's gate, after a pause if the job has to pause before it gets there.
func (l *loop) inside(ctx context.Context, f func() error) error {
	for {
		err := l.enter(ctx)
		if err == nil {
			defer l.m.backend.Gate().Leave()
			return f()
		}
		if !errors.Is(err, errPause) {
			return err
		}
		if err := l.look(ctx); err != nil {
			return err
		}
	}
}
