// SPDX-License-Identifier: Apache-2.0

package handlers

import (
	"context"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/daemon/state"
	"github.com/blkmirror/blkmirror/job/chain"
	"github.com/blkmirror/blkmirror/job/stream"
	"github.com/blkmirror/blkmirror/qmp"
	"github.com/blkmirror/blkmirror/qmp/api"
)

// BlockStream starts a job that makes an image independent of those below it.
func (h *Handlers) BlockStream(ctx context.Context, a *api.BlockStreamArguments) error {
	return h.startStream(ctx, a, nil)
}

// startStream starts a stream: one that begins, or one that goes on.
func (h *Handlers) startStream(ctx context.Context, a *api.BlockStreamArguments, again *resumption) error {
	o := stream.Options{
		JobID: qmp.Or(a.JobID, ""), BackingFile: a.BackingFile, MaskProtocol: qmp.Or(a.BackingMaskProtocol, false),
		Speed: qmp.Or(a.Speed, 0), OnError: policy(a.OnError), FilterName: qmp.Or(a.FilterNodeName, ""),
		AutoFinalize: qmp.Or(a.AutoFinalize, true), AutoDismiss: qmp.Or(a.AutoDismiss, true), Reopen: h.reopenForJob,
	}
	var err error
	if o.Device, err = h.graph.Node(a.Device); err != nil {
		return err
	}
	if o.Base, err = h.layer(o.Device, "base", a.BaseNode, a.Base); err != nil {
		return err
	}
	if a.Bottom != nil {
		if a.Base != nil || a.BaseNode != nil {
			return qmp.Errorf("'bottom' cannot be specified at the same time as 'base' or 'base-node'")
		}
		if o.Base, err = h.below(o.Device, *a.Bottom); err != nil {
			return err
		}
	}
	if o.Base == nil && a.BackingFile != nil {
		return qmp.Errorf("backing file specified, but streaming the entire chain")
	}
	k := &keptJob{id: o.JobID}
	var body *stream.Stream
	k.describe = func(p *picture) (j state.Job, err error) {
		device, base := body.Nodes()
		args, speed := *a, k.job.Speed()
		args.Speed, args.Bottom, args.Base, args.BaseNode = &speed, nil, nil, nil
		if base != nil {
			args.BaseNode, args.Base = p.layer(p.below(base))
		}
		args.Device, err = p.place(p.below(device))
		return state.Job{Command: commandStream, Definition: definitionText(&args)}, err
	}
	o.OnInsert = func(s *stream.Stream, tx *block.Tx) error {
		body = s
		return h.inserted(k, tx)
	}
	o.OnFinish = func(tx *block.Tx) error { return h.finishing(k, tx, nil) }
	o.OnEnd = func() error { return h.endKept(k) }
	if again != nil {
		o.Wanted = again.wanted()
	}
	return h.startKept(k, func() error {
		_, err := stream.Start(ctx, h.graph, h.jobs, o, h.begins(ctx))
		return err
	})
}

// below is the node below a layer of the chain of a device; nil if there is none.
func (h *Handlers) below(device *block.Node, name string) (*block.Node, error) {
	bottom, err := h.graph.Node(name)
	if err != nil {
		return nil, err
	}
	switch at := chain.Index(chain.Nodes(device), bottom); {
	case at < 0:
		return nil, qmp.Errorf("Node '%s' is not in the backing chain of '%s'", name, device.Name())
	case at == 0:
		return nil, qmp.Errorf("Node '%s' is the device itself and cannot be taken out of its chain", name)
	}
	return bottom.Backing(), nil
}
