// SPDX-License-Identifier: Apache-2.0

package handlers

import (
	"context"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/job/chain"
	"github.com/blkmirror/blkmirror/job/commit"
	"github.com/blkmirror/blkmirror/qmp"
	"github.com/blkmirror/blkmirror/qmp/api"
)

// BlockCommit starts a job that moves data down a chain.
func (h *Handlers) BlockCommit(ctx context.Context, a *api.BlockCommitArguments) error {
	o := commit.Options{
		JobID: qmp.Or(a.JobID, ""), BackingFile: a.BackingFile, MaskProtocol: qmp.Or(a.BackingMaskProtocol, false),
		Speed: qmp.Or(a.Speed, 0), OnError: policy(a.OnError), FilterName: qmp.Or(a.FilterNodeName, ""),
		AutoFinalize: qmp.Or(a.AutoFinalize, true), AutoDismiss: qmp.Or(a.AutoDismiss, true), Reopen: h.reopenForJob,
	}
	var err error
	if o.Device, err = h.graph.Node(a.Device); err != nil {
		return qmp.ClassErrorf(qmp.DeviceNotFound, "Device '%s' not found", a.Device)
	}
	if o.Top, err = h.layer(o.Device, "top", a.TopNode, a.Top); err != nil {
		return err
	}
	if o.Base, err = h.layer(o.Device, "base", a.BaseNode, a.Base); err != nil {
		return err
	}
	o.OnPivot = func(from, to *block.Node) func(context.Context, *block.Tx) error {
		return h.recordPivot(&pivot{from: from, to: to})
	}
	_, err = commit.Start(ctx, h.graph, h.jobs, o, after(ctx))
	return err
}

// layer finds a layer of a chain by its node name or by the name of its file; nil if neither is given.
func (h *Handlers) layer(device *block.Node, argument string, node, file *string) (*block.Node, error) {
	switch {
	case node != nil && file != nil:
		return nil, qmp.Errorf("'%s-node' and '%s' are mutually exclusive", argument, argument)
	case node != nil:
		return h.graph.Node(*node)
	case file == nil:
		return nil, nil
	}
	above := ""
	for _, n := range chain.Nodes(device) {
		full, err := fullName(*file, above)
		if n.FileName() == *file || err == nil && n.FileName() == full {
			return n, nil
		}
		above = n.FileName()
	}
	return nil, qmp.Errorf("Can't find '%s' in the backing chain of '%s'", *file, device.Name())
}
