// SPDX-License-Identifier: Apache-2.0

package handlers

import (
	"context"
	"math"

	"github.com/blkmirror/blkmirror/job/mirror"
	"github.com/blkmirror/blkmirror/qmp"
	"github.com/blkmirror/blkmirror/qmp/api"
)

// What the web page draws is asked for by commands, so that any client can draw it.

const defaultCells = 1024

// XQueryMirrorMap tells which parts of a disk a mirror has copied. Other commands run while it counts.
func (h *Handlers) XQueryMirrorMap(ctx context.Context, a *api.XQueryMirrorMapArguments) (answer api.MirrorMap, err error) {
	j, err := h.jobs.Find(a.ID)
	if err != nil {
		return answer, err
	}
	m, ok := j.Body().(*mirror.Mirror)
	if !ok {
		return answer, qmp.Errorf("Job '%s' of type '%s' has no map", a.ID, j.Info().Type)
	}
	cells := qmp.Or(a.Cells, defaultCells)
	if cells < 1 || cells > mirror.MaxCells {
		return answer, qmp.Errorf("Parameter 'cells' expects a value from 1 to %d", mirror.MaxCells)
	}
	err = h.config.Aside(ctx, func(ctx context.Context) error {
		counted, err := m.Map(ctx, qmp.Or(a.Offset, 0), qmp.Or(a.Length, math.MaxInt64), int(cells))
		if err == nil {
			answer = mapOf(counted)
		}
		return err
	})
	return answer, err
}

func mapOf(m mirror.Map) api.MirrorMap {
	a := api.MirrorMap{Size: m.Size, Granularity: m.Granularity, Offset: m.Off, CellSize: m.CellSize}
	lists := []*[]int64{&a.Unscanned, &a.Dirty, &a.DirtyZero, &a.InFlight, &a.Copied, &a.Zero}
	for _, list := range lists {
		*list = make([]int64, len(m.Cells))
	}
	for i, c := range m.Cells {
		for k, n := range []int64{c.Unscanned, c.Dirty, c.DirtyZero, c.InFlight, c.Copied, c.Zero} {
			(*lists[k])[i] = n
		}
	}
	return a
}

// XQueryBlockGraph tells who uses which node.
func (h *Handlers) XQueryBlockGraph(context.Context) ([]api.BlockGraphEdge, error) {
	users := map[string]api.BlockGraphEdge{}
	for _, e := range h.exports.List() {
		users["export '"+e.ID()+"'"] = api.BlockGraphEdge{User: api.BlockGraphUserExport, Name: e.ID()}
	}
	for _, j := range h.jobs.Jobs() {
		id := j.Info().ID
		edge := api.BlockGraphEdge{User: api.BlockGraphUserJob, Name: id}
		users["job '"+id+"'"], users["block job '"+id+"'"] = edge, edge
	}
	var list []api.BlockGraphEdge
	for _, u := range h.graph.Uses() {
		edge, known := users[u.User]
		switch {
		case u.Parent != nil:
			edge = api.BlockGraphEdge{User: api.BlockGraphUserNode, Name: u.Parent.Name()}
		case !known:
			edge = api.BlockGraphEdge{User: api.BlockGraphUserOther, Name: u.User}
		}
		edge.Role, edge.NodeName = u.Role, u.Child.Name()
		list = append(list, edge)
	}
	return list, nil
}

// XQueryExportClients lists the clients of all exports.
func (h *Handlers) XQueryExportClients(context.Context) ([]api.BlockExportClient, error) {
	var list []api.BlockExportClient
	for _, e := range h.exports.List() {
		served, ok := e.(interface{ Clients() []string })
		if !ok {
			continue
		}
		for _, address := range served.Clients() {
			list = append(list, api.BlockExportClient{ID: e.ID(), Address: nonEmpty(address)})
		}
	}
	return list, nil
}
