// SPDX-License-Identifier: Apache-2.0

package handlers

import (
	"context"
	"strings"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/daemon/state"
	"github.com/blkmirror/blkmirror/job/chain"
	"github.com/blkmirror/blkmirror/job/commit"
	"github.com/blkmirror/blkmirror/job/mirror"
	"github.com/blkmirror/blkmirror/qmp"
	"github.com/blkmirror/blkmirror/qmp/api"
)

// BlockCommit starts a job that moves data down a chain.
func (h *Handlers) BlockCommit(ctx context.Context, a *api.BlockCommitArguments) error {
	return h.startCommit(ctx, a, nil)
}

// startCommit starts a commit: one that begins, or one that goes on.
func (h *Handlers) startCommit(ctx context.Context, a *api.BlockCommitArguments, again *resumption) error {
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
	k := &keptJob{id: o.JobID}
	k.describe = func(p *picture) (state.Job, error) { return k.describeCommit(p, a, o.Device) }
	o.Prepare = func(m *mirror.Options) error {
		found, err := h.findIntent(again, m)
		if err != nil {
			return err
		}
		return h.keepMirror(k, m, found)
	}
	if again != nil {
		o.Wanted = again.wanted()
	}
	return h.startKept(k, func() error {
		_, err := commit.Start(ctx, h.graph, h.jobs, o, h.begins(ctx))
		return err
	})
}

// describeCommit says how a commit that was made with the arguments a would be made now.
func (k *keptJob) describeCommit(p *picture, a *api.BlockCommitArguments, device *block.Node) (j state.Job, err error) {
	top, base := k.mirror.Nodes()
	top, base = p.below(top), p.below(base)
	args, speed := *a, k.job.Speed()
	args.Speed = &speed
	if args.Device, err = p.place(p.below(device)); err != nil {
		return j, err
	}
	args.TopNode, args.Top = p.layer(top)
	args.BaseNode, args.Base = p.layer(base)
	return state.Job{Command: commandCommit, Definition: definitionText(&args), Source: p.diskName(top), Target: p.diskName(base)}, nil
}

// layer is how a layer of a chain is found again: by its name if that is the operator's, else by its disk.
func (p *picture) layer(n *block.Node) (node, file *string) {
	if name := n.Name(); !strings.HasPrefix(name, "#") {
		return &name, nil
	}
	name := p.diskName(n)
	return nil, &name
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
