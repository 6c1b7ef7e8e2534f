// SPDX-License-Identifier: Apache-2.0

package mirror

import (
	"context"
	"errors"

	"github.com/blkmirror/blkmirror/job"
)

// enter passes the job's gate.
func (l *loop) enter(ctx context.Context) error { return l.m.job.Enter(ctx, l.m.backend.Gate()) }

// inside runs f behind the job's gate, after a pause if the job has to pause before it gets there.
func (l *loop) inside(ctx context.Context, f func() error) error {
	for {
		err := l.enter(ctx)
		if err == nil {
			defer l.m.backend.Gate().Leave()
			return f()
		}
		if !errors.Is(err, job.ErrPause) {
			return err
		}
		if err := l.look(ctx); err != nil {
			return err
		}
	}
}
