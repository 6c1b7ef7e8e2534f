// SPDX-License-Identifier: Apache-2.0

package handlers

import (
	"context"

	"github.com/blkmirror/blkmirror/block/driver/file"
	"github.com/blkmirror/blkmirror/job"
	"github.com/blkmirror/blkmirror/qmp"
	"github.com/blkmirror/blkmirror/qmp/api"
)

// BlockdevCreate starts a job that makes an image.
func (h *Handlers) BlockdevCreate(ctx context.Context, a *api.BlockdevCreateArguments) error {
	f := a.Options.File
	if f == nil {
		return qmp.Errorf("Driver '%s' does not support blockdev-create", a.Options.Driver)
	}
	o := file.CreateOptions{Filename: f.Filename, Size: int64(f.Size), NoCOW: qmp.Or(f.Nocow, false)}
	if o.Size < 0 {
		return qmp.Errorf("Parameter 'options.size' is too large: %d", f.Size)
	}
	switch f.Preallocation {
	case api.PreallocModeMetadata:
		o.Preallocation = file.PreallocationMetadata
	case api.PreallocModeFalloc:
		o.Preallocation = file.PreallocationFalloc
	case api.PreallocModeFull:
		o.Preallocation = file.PreallocationFull
	}
	j, err := h.jobs.Add(job.Config{ID: a.JobID, Type: "create", AutoFinalize: true, Body: creation{o}})
	if err != nil {
		return err
	}
	j.Start(after(ctx))
	return nil
}

// creation is the body of a create job.
type creation struct{ options file.CreateOptions }

func (c creation) Run(ctx context.Context, j *job.Job) error {
	j.Progress.SetRemaining(1)
	err := file.Create(ctx, c.options)
	j.Progress.Done(1)
	if err != nil {
		return err
	}
	for !j.EnterPending() {
		if err := j.Checkpoint(ctx); err != nil {
			return err
		}
	}
	return j.Commit()
}

func (c creation) Clean(error) error { return nil }
