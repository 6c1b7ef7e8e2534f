// SPDX-License-Identifier: Apache-2.0

package handlers

import (
	"context"
	"math"

	"github.com/blkmirror/blkmirror/qmp"
	"github.com/blkmirror/blkmirror/qmp/api"
)

// BlockSetWriteThreshold has an event sent when a node is written beyond an offset.
func (h *Handlers) BlockSetWriteThreshold(_ context.Context, a *api.BlockSetWriteThresholdArguments) error {
	n, err := h.graph.Node(a.NodeName)
	if err != nil {
		return qmp.Errorf("Device '%s' not found", a.NodeName)
	}
	if a.WriteThreshold > math.MaxInt64 {
		return qmp.Errorf("Parameter 'write-threshold' is too large: %d", a.WriteThreshold)
	}
	n.SetWriteThreshold(int64(a.WriteThreshold), func(exceeded int64) {
		h.config.Emit(&api.BlockWriteThresholdEvent{NodeName: a.NodeName, AmountExceeded: uint64(exceeded),
			WriteThreshold: a.WriteThreshold})
	})
	return nil
}

// XBlockdevChange adds or removes a child, which no driver here allows.
func (h *Handlers) XBlockdevChange(_ context.Context, a *api.XBlockdevChangeArguments) error {
	parent, err := h.graph.Node(a.Parent)
	switch {
	case err != nil:
		return err
	case a.Child != nil && a.Node != nil:
		return qmp.Errorf("The parameters child and node are in conflict")
	case a.Node != nil:
		if _, err := h.graph.Node(*a.Node); err != nil {
			return qmp.Errorf("Node '%s' not found", *a.Node)
		}
		return qmp.Errorf("The node %s does not support adding a child", a.Parent)
	case a.Child != nil:
		for _, e := range parent.Children() {
			if e.Name() == *a.Child {
				return qmp.Errorf("The node %s does not support removing a child", a.Parent)
			}
		}
		return qmp.Errorf("Node '%s' does not have child '%s'", a.Parent, *a.Child)
	}
	return qmp.Errorf("Either child or node must be specified")
}
