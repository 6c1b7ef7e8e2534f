// SPDX-License-Identifier: Apache-2.0

package handlers

import (
	"context"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/job/chain"
	"github.com/blkmirror/blkmirror/job/stream"
	"github.com/blkmirror/blkmirror/qmp"
	"github.com/blkmirror/blkmirror/qmp/api"
)

// BlockStream starts a job that makes an image independent of those below it.
func (h *Handlers) BlockStream(ctx context.Context, a *api.BlockStreamArguments) error {
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
	_, err = stream.Start(ctx, h.graph, h.jobs, o, after(ctx))
	return err
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
