// SPDX-License-Identifier: Apache-2.0

package handlers

import (
	"context"
	"math"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/filter/throttle"
	"github.com/blkmirror/blkmirror/qmp"
	"github.com/blkmirror/blkmirror/qmp/api"
)

// ObjectAdd makes an object.
func (h *Handlers) ObjectAdd(ctx context.Context, o *api.ObjectOptions) error {
	if !block.WellFormedID(o.ID) {
		return qmp.Errorf("Parameter 'id' expects an identifier, not '%s'", o.ID)
	}
	if _, taken := h.objects[o.ID]; taken {
		return qmp.Errorf("attempt to add duplicate property '%s' to object (type 'container')", o.ID)
	}
	made := object{kind: o.QOMType, given: o}
	if o.Iothread != nil {
		if err := checkIothread(o.Iothread); err != nil {
			return err
		}
		own := *o.Iothread
		made.iothread = &own
	}
	if o.ThrottleGroup != nil {
		group, err := throttle.NewGroup(o.ID, throttleLimits(throttle.Limits{}, o.ThrottleGroup.Limits))
		if err != nil {
			return err
		}
		made.group = group
	}
	var err error
	if made.secrets, err = newSecrets(o); err != nil {
		return err
	}
	if rules, ok := made.rules(); ok {
		h.doors.add(o.ID, rules)
	}
	if o.TLSCredsX509 != nil && o.TLSCredsX509.Dir != nil {
		given, x509 := *o, *o.TLSCredsX509
		dir := absolute(*x509.Dir, workingFolder())
		given.TLSCredsX509, x509.Dir, made.given = &x509, &dir, &given
	}
	h.objects[o.ID] = made
	return h.note(ctx, func() { h.forget(o.ID) })
}

func (h *Handlers) forget(id string) {
	h.doors.remove(id)
	delete(h.objects, id)
}

// definition makes the object again as it is.
func (o object) definition(id string) *api.ObjectOptions {
	d := api.ObjectOptions{QOMType: o.kind, ID: id}
	switch {
	case o.group != nil:
		d.ThrottleGroup = &api.ThrottleGroupProperties{Limits: describeLimitsOf(o.group.Limits())}
	case o.iothread != nil:
		i := *o.iothread
		d.Iothread = &i
	default:
		d = *o.given
	}
	return &d
}

// checkIothread says which number of an iothread makes no sense.
func checkIothread(i *api.IothreadProperties) error {
	for _, p := range propertiesOf(api.ObjectTypeIothread) {
		if value := p.get(object{iothread: i}).(int64); value < 0 {
			return qmp.Errorf("%s value must be in range [0, %d]", p.name, int64(math.MaxInt64))
		}
	}
	if least, most := qmp.Or(i.ThreadPoolMin, 0), qmp.Or(i.ThreadPoolMax, 64); most == 0 || least > most {
		return qmp.Errorf("bad thread-pool-min/thread-pool-max values")
	}
	return nil
}

// throttleLimits is base with the changes of l, nil for none.
func throttleLimits(base throttle.Limits, l *api.ThrottleLimits) throttle.Limits {
	if l == nil {
		return base
	}
	limit := func(base throttle.Limit, average, most, length *int64) throttle.Limit {
		return throttle.Limit{Average: qmp.Or(average, base.Average), Max: qmp.Or(most, base.Max),
			MaxLength: qmp.Or(length, base.MaxLength)}
	}
	return throttle.Limits{
		BPSTotal:  limit(base.BPSTotal, l.BPSTotal, l.BPSTotalMax, l.BPSTotalMaxLength),
		BPSRead:   limit(base.BPSRead, l.BPSRead, l.BPSReadMax, l.BPSReadMaxLength),
		BPSWrite:  limit(base.BPSWrite, l.BPSWrite, l.BPSWriteMax, l.BPSWriteMaxLength),
		IOPSTotal: limit(base.IOPSTotal, l.IOPSTotal, l.IOPSTotalMax, l.IOPSTotalMaxLength),
		IOPSRead:  limit(base.IOPSRead, l.IOPSRead, l.IOPSReadMax, l.IOPSReadMaxLength),
		IOPSWrite: limit(base.IOPSWrite, l.IOPSWrite, l.IOPSWriteMax, l.IOPSWriteMaxLength),
		IOPSSize:  qmp.Or(l.IOPSSize, base.IOPSSize),
	}
}

// ObjectDel deletes an object. A throttle group must not be in use; what uses TLS credentials keeps its own copy, and a server
// whose authorisation object is gone lets nobody in.
func (h *Handlers) ObjectDel(ctx context.Context, a *api.ObjectDelArguments) error {
	o, ok := h.objects[a.ID]
	if !ok {
		return qmp.Errorf("object '%s' not found", a.ID)
	}
	for _, n := range h.graph.Nodes() {
		if t, ok := n.Driver().(*throttle.Throttle); ok && t.Group() == o.group {
			return qmp.Errorf("Cannot delete throttle group '%s' with active references: node '%s' uses it", a.ID, n.Name())
		}
	}
	h.forget(a.ID)
	return h.note(ctx, func() {
		h.objects[a.ID] = o
		if rules, ok := o.rules(); ok {
			h.doors.add(a.ID, rules)
		}
	})
}
