// SPDX-License-Identifier: Apache-2.0

package handlers

import (
	"context"

	"github.com/blkmirror/blkmirror/block/driver/file"
	"github.com/blkmirror/blkmirror/block/driver/nbd"
	"github.com/blkmirror/blkmirror/job"
	"github.com/blkmirror/blkmirror/qmp"
	"github.com/blkmirror/blkmirror/qmp/api"
)

// BlockdevCreate starts a job that makes an image.
func (h *Handlers) BlockdevCreate(ctx context.Context, a *api.BlockdevCreateArguments) error {
	var body creation
	var err error
	switch o := a.Options; {
	case o.File != nil:
		body, err = createFile(o.File)
	case o.Qcow2 != nil:
		body = h.createImage(ctx, a.JobID, o.Qcow2)
	default:
		err = qmp.Errorf("Driver '%s' does not support blockdev-create", a.Options.Driver)
	}
	if err != nil {
		return err
	}
	j, err := h.jobs.Add(job.Config{ID: a.JobID, Type: "create", AutoFinalize: true, Body: body})
	if err != nil {
		if body.clean != nil {
			_ = body.clean(ctx)
		}
		return err
	}
	j.Start(after(ctx))
	return nil
}

func createFile(f *api.BlockdevCreateOptionsFile) (creation, error) {
	o := file.CreateOptions{Filename: f.Filename, Size: int64(f.Size), NoCOW: qmp.Or(f.Nocow, false)}
	switch {
	case nbd.IsURI(f.Filename):
		return creation{}, qmp.Errorf("'%s' cannot be created: an NBD server's exports are made where it runs. A format can be created in "+
			"one that is there, with 'file' saying driver nbd", f.Filename)
	case o.Size < 0:
		return creation{}, qmp.Errorf("Parameter 'options.size' is too large: %d", f.Size)
	}
	switch f.Preallocation {
	case api.PreallocModeMetadata:
		o.Preallocation = file.PreallocationMetadata
	case api.PreallocModeFalloc:
		o.Preallocation = file.PreallocationFalloc
	case api.PreallocModeFull:
		o.Preallocation = file.PreallocationFull
	}
	return creation{run: func(ctx context.Context) error { return file.Create(ctx, o) }}, nil
}

// creation is the body of a create job.
type creation struct {
	run   func(ctx context.Context) error
	clean func(ctx context.Context) error // gives up what run needs; may be nil
}

func (c creation) Run(ctx context.Context, j *job.Job) error {
	j.Progress.SetRemaining(1)
	err := c.run(ctx)
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

func (c creation) Clean(error) error {
	if c.clean == nil {
		return nil
	}
	return c.clean(context.Background())
}
