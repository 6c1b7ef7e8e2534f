// SPDX-License-Identifier: Apache-2.0

package powerloss

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/blkmirror/blkmirror/qmp"
	"github.com/blkmirror/blkmirror/qmp/api"
)

// model is what an operator was told that there is.
type model struct {
	server  bool
	objects map[string]bool
	nodes   map[string]bool
	bitmaps map[at]bits
	exports map[string]string // the node by the id
	job     *mirror           // nil for none
	chain   []string          // the layers below the guests, from the top down; nil in schedules of mirrors
}

type at struct{ node, name string }

type bits struct {
	granularity uint32
	recording   bool
	since       uint64 // the journal's clock when it was there
}

type mirror struct {
	source, target string
	speed          int64
	paused         bool

	kind     string // "" for a mirror
	active   bool   // a commit of the layer that guests write to
	manual   bool   // with auto-finalize=false
	complete bool   // it was answered that it completes
	finalize bool   // it was answered that it ends when it is pending
}

func newModel() *model {
	return &model{objects: map[string]bool{}, nodes: map[string]bool{}, bitmaps: map[at]bits{}, exports: map[string]string{}}
}

func (m *model) with(changes ...func(*model)) *model {
	n := &model{m.server, maps.Clone(m.objects), maps.Clone(m.nodes), maps.Clone(m.bitmaps), maps.Clone(m.exports), nil, m.chain}
	if m.job != nil {
		job := *m.job
		n.job = &job
	}
	for _, change := range changes {
		change(n)
	}
	return n
}

// ended is the end of the mirror without a pivot.
func (m *model) ended() { m.job = nil }

// pivoted is its end with one.
func (m *model) pivoted() {
	if m.job == nil {
		return
	}
	from, to := m.job.source, m.job.target
	for id, node := range m.exports {
		if node == from {
			m.exports[id] = to
		}
	}
	for a, b := range maps.Clone(m.bitmaps) {
		if a.node == from {
			delete(m.bitmaps, a)
			m.bitmaps[at{to, a.name}] = b
		}
	}
	m.job = nil
}

func (m *model) String() string {
	bitmaps := map[at]bits{}
	for a, b := range m.bitmaps {
		b.since = 0
		bitmaps[a] = b
	}
	job := "none"
	if m.job != nil {
		job = fmt.Sprintf("%+v", *m.job)
	}
	return fmt.Sprintf("server %v, objects %v, nodes %v, bitmaps %v, exports %v, chain %v, job %s", m.server, m.objects, m.nodes, bitmaps,
		m.exports, m.chain, job)
}

// look asks the daemon what there is.
func (l *life) look() (*model, error) {
	ctx, h, m := context.Background(), l.handlers, newModel()
	objects, err := h.QOMList(ctx, &api.QOMListArguments{Path: "/objects"})
	if err != nil {
		return nil, err
	}
	for _, o := range objects {
		if o.Name != "type" {
			m.objects[o.Name] = true
		}
	}
	nodes, err := h.QueryNamedBlockNodes(ctx, nil)
	if err != nil {
		return nil, err
	}
	for _, n := range nodes {
		name := *n.NodeName
		if strings.HasPrefix(name, "#") || slices.Contains([]string{"mirror_top", "commit_top", "copy-on-read"}, n.Drv) {
			continue
		}
		m.nodes[name] = true
		for _, b := range n.DirtyBitmaps {
			if b.Name != nil {
				m.bitmaps[at{name, *b.Name}] = bits{granularity: b.Granularity, recording: b.Recording}
			}
		}
	}
	exports, err := h.QueryBlockExports(ctx)
	if err != nil {
		return nil, err
	}
	for _, e := range exports {
		m.exports[e.ID] = l.nodeName(e.NodeName)
	}
	guests := m.exports["e"]
	if top := layer(l.layers.count - 1); guests == "" && m.nodes[top] {
		guests = top // the power went before there was an export
	}
	if guests != "" && l.layers.count > 0 {
		if m.chain, err = l.chainOf(guests); err != nil {
			return nil, err
		}
	}
	m.server = l.listener != nil
	jobs, err := h.QueryBlockJobs(ctx)
	if err != nil {
		return nil, err
	}
	for _, j := range jobs {
		if j.Status != api.JobStatusConcluded && j.Status != api.JobStatusNull && j.Status != api.JobStatusAborting {
			m.job = &mirror{speed: j.Speed, paused: j.Paused && j.Status != api.JobStatusPending}
		}
	}
	return m, nil
}

// dispatch executes a command.
func (l *life) dispatch(command, arguments string) (any, error) {
	value, err := qmp.NewReader(strings.NewReader(arguments + "\n")).Next()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", arguments, err)
	}
	return l.handlers.Dispatch(context.Background(), command, value.(*qmp.Object))
}
