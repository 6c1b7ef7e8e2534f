// SPDX-License-Identifier: Apache-2.0

package handlers

import (
	"context"
	"maps"
	"slices"
	"strings"

	"github.com/blkmirror/blkmirror/block/filter/throttle"
	"github.com/blkmirror/blkmirror/qmp"
	"github.com/blkmirror/blkmirror/qmp/api"
)

const (
	objectsPath   = "/objects"
	containerType = "container"
)

// property is one that an object has.
type property struct {
	name, kind string
	get        func(o object) any
	set        func(o object, value any) error // nil if it is fixed
}

// propertiesOf are those of a kind of object, but for its type.
func propertiesOf(kind api.ObjectType) []property {
	if kind == api.ObjectTypeThrottleGroup {
		return []property{{name: "limits", kind: "ThrottleLimits",
			get: func(o object) any { return describeLimitsOf(o.group.Limits()) },
			set: setLimits}}
	}
	if kind != api.ObjectTypeIothread {
		return secretProperties(kind)
	}
	return []property{
		iothreadProperty("poll-max-ns", 32768, func(i *api.IothreadProperties) **int64 { return &i.PollMaxNS }),
		iothreadProperty("poll-grow", 2, func(i *api.IothreadProperties) **int64 { return &i.PollGrow }),
		iothreadProperty("poll-shrink", 2, func(i *api.IothreadProperties) **int64 { return &i.PollShrink }),
		iothreadProperty("poll-weight", 3, func(i *api.IothreadProperties) **int64 { return &i.PollWeight }),
		iothreadProperty("aio-max-batch", 0, func(i *api.IothreadProperties) **int64 { return &i.AIOMaxBatch }),
		iothreadProperty("thread-pool-min", 0, func(i *api.IothreadProperties) **int64 { return &i.ThreadPoolMin }),
		iothreadProperty("thread-pool-max", 64, func(i *api.IothreadProperties) **int64 { return &i.ThreadPoolMax }),
	}
}

func setLimits(o object, value any) error {
	var p api.ThrottleGroupProperties // so that errors name the property
	if err := qmp.Decode(qmp.NewObject(qmp.Member{Name: "limits", Value: value}), qmp.Strict, &p); err != nil {
		return err
	}
	return o.group.SetLimits(throttleLimits(o.group.Limits(), p.Limits))
}

// iothreadProperty is a number that an iothread keeps without using it.
func iothreadProperty(name string, otherwise int64, field func(*api.IothreadProperties) **int64) property {
	return property{
		name: name, kind: "int",
		get: func(o object) any { return qmp.Or(*field(o.iothread), otherwise) },
		set: func(o object, value any) error {
			changed := *o.iothread
			number, ok := value.(int64)
			if !ok {
				return qmp.Errorf("Invalid parameter type for '%s', expected: integer", name)
			}
			*field(&changed) = &number
			if err := checkIothread(&changed); err != nil {
				return err
			}
			*o.iothread = changed
			return nil
		},
	}
}

func describeLimitsOf(l throttle.Limits) *api.ThrottleLimits {
	d := &api.ThrottleLimits{IOPSSize: &l.IOPSSize}
	for _, pair := range []struct {
		of                    *throttle.Limit
		average, most, length **int64
	}{
		{&l.BPSTotal, &d.BPSTotal, &d.BPSTotalMax, &d.BPSTotalMaxLength},
		{&l.BPSRead, &d.BPSRead, &d.BPSReadMax, &d.BPSReadMaxLength},
		{&l.BPSWrite, &d.BPSWrite, &d.BPSWriteMax, &d.BPSWriteMaxLength},
		{&l.IOPSTotal, &d.IOPSTotal, &d.IOPSTotalMax, &d.IOPSTotalMaxLength},
		{&l.IOPSRead, &d.IOPSRead, &d.IOPSReadMax, &d.IOPSReadMaxLength},
		{&l.IOPSWrite, &d.IOPSWrite, &d.IOPSWriteMax, &d.IOPSWriteMaxLength},
	} {
		length := max(pair.of.MaxLength, 1)
		*pair.average, *pair.most, *pair.length = &pair.of.Average, &pair.of.Max, &length
	}
	return d
}

// find finds the object that a path leads to.
func (h *Handlers) find(path string) (object, error) {
	id, absolute := strings.CutPrefix(path, objectsPath+"/")
	if o, ok := h.objects[id]; ok && (absolute || !strings.Contains(path, "/")) {
		return o, nil
	}
	return object{}, qmp.ClassErrorf(qmp.DeviceNotFound, "Device '%s' not found", path)
}

// property finds a property of an object.
func (h *Handlers) property(path, name string) (object, property, error) {
	o, err := h.find(path)
	if err != nil {
		return o, property{}, err
	}
	if name == "type" {
		return o, property{name: name, kind: "string", get: func(o object) any { return string(o.kind) }}, nil
	}
	for _, p := range propertiesOf(o.kind) {
		if p.name == name {
			return o, p, nil
		}
	}
	return o, property{}, qmp.Errorf("Property '%s.%s' not found", o.kind, name)
}

// QOMList lists the objects, or the properties of one.
func (h *Handlers) QOMList(_ context.Context, a *api.QOMListArguments) ([]api.ObjectPropertyInfo, error) {
	list := []api.ObjectPropertyInfo{{Name: "type", Type: "string"}}
	switch a.Path {
	case "/":
		return append(list, api.ObjectPropertyInfo{Name: "objects", Type: "child<container>"}), nil
	case objectsPath:
		for _, id := range slices.Sorted(maps.Keys(h.objects)) {
			list = append(list, api.ObjectPropertyInfo{Name: id, Type: "child<" + string(h.objects[id].kind) + ">"})
		}
		return list, nil
	}
	o, err := h.find(a.Path)
	if err != nil {
		return nil, err
	}
	for _, p := range propertiesOf(o.kind) {
		list = append(list, api.ObjectPropertyInfo{Name: p.name, Type: p.kind})
	}
	return list, nil
}

// QOMGet returns a property of an object.
func (h *Handlers) QOMGet(_ context.Context, a *api.QOMGetArguments) (any, error) {
	if a.Path == objectsPath || a.Path == "/" {
		if a.Property == "type" {
			return containerType, nil
		}
		child := strings.TrimSuffix(a.Path, "/") + "/" + a.Property
		if _, err := h.find(child); err != nil && child != objectsPath {
			return nil, qmp.Errorf("Property '%s.%s' not found", containerType, a.Property)
		}
		return child, nil
	}
	o, p, err := h.property(a.Path, a.Property)
	if err != nil {
		return nil, err
	}
	return p.get(o), nil
}

// QOMSet changes a property of an object.
func (h *Handlers) QOMSet(ctx context.Context, a *api.QOMSetArguments) error {
	o, p, err := h.property(a.Path, a.Property)
	if err != nil {
		return err
	}
	if p.set == nil {
		return qmp.Errorf("Property '%s.%s' is not writable", o.kind, a.Property)
	}
	undo := o.keep()
	if err := p.set(o, a.Value); err != nil {
		return err
	}
	return h.note(ctx, undo)
}

// keep returns what brings the properties of an object back that can be set.
func (o object) keep() (undo func()) {
	if o.group != nil {
		was := o.group.Limits()
		return func() { _ = o.group.SetLimits(was) } // they were good before
	}
	was := *o.iothread
	return func() { *o.iothread = was }
}
