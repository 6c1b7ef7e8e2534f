// SPDX-License-Identifier: Apache-2.0

package handlers

import (
	"context"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/filter/throttle"
	"github.com/blkmirror/blkmirror/qmp"
	"github.com/blkmirror/blkmirror/qmp/api"
)

// ObjectAdd makes an object.
func (h *Handlers) ObjectAdd(_ context.Context, o *api.ObjectOptions) error {
	if !block.WellFormedID(o.ID) {
		return qmp.Errorf("Parameter 'id' expects an identifier, not '%s'", o.ID)
	}
	if _, taken := h.objects[o.ID]; taken {
		return qmp.Errorf("attempt to add duplicate property '%s' to object (type 'container')", o.ID)
	}
	var made object
	if o.ThrottleGroup != nil {
		var limits throttle.Limits
		if l := o.ThrottleGroup.Limits; l != nil {
			limits = throttleLimits(l)
		}
		group, err := throttle.NewGroup(o.ID, limits)
		if err != nil {
			return err
		}
		made.group = group
	}
	h.objects[o.ID] = made
	return nil
}

func throttleLimits(l *api.ThrottleLimits) throttle.Limits {
	limit := func(average, most, length *int64) throttle.Limit {
		return throttle.Limit{Average: qmp.Or(average, 0), Max: qmp.Or(most, 0), MaxLength: qmp.Or(length, 0)}
	}
	return throttle.Limits{
		BPSTotal:  limit(l.BPSTotal, l.BPSTotalMax, l.BPSTotalMaxLength),
		BPSRead:   limit(l.BPSRead, l.BPSReadMax, l.BPSReadMaxLength),
		BPSWrite:  limit(l.BPSWrite, l.BPSWriteMax, l.BPSWriteMaxLength),
		IOPSTotal: limit(l.IOPSTotal, l.IOPSTotalMax, l.IOPSTotalMaxLength),
		IOPSRead:  limit(l.IOPSRead, l.IOPSReadMax, l.IOPSReadMaxLength),
		IOPSWrite: limit(l.IOPSWrite, l.IOPSWriteMax, l.IOPSWriteMaxLength),
		IOPSSize:  qmp.Or(l.IOPSSize, 0),
	}
}

// ObjectDel deletes an object that nothing uses.
func (h *Handlers) ObjectDel(_ context.Context, a *api.ObjectDelArguments) error {
	o, ok := h.objects[a.ID]
	if !ok {
		return qmp.Errorf("object '%s' not found", a.ID)
	}
	for _, n := range h.graph.Nodes() {
		if t, ok := n.Driver().(*throttle.Throttle); ok && t.Group() == o.group {
			return qmp.Errorf("Cannot delete throttle group '%s': node '%s' uses it", a.ID, n.Name())
		}
	}
	delete(h.objects, a.ID)
	return nil
}
