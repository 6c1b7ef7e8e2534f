// SPDX-License-Identifier: Apache-2.0

package handlers

import (
	"context"

	"github.com/blkmirror/blkmirror/block/trace"
	"github.com/blkmirror/blkmirror/qmp"
	"github.com/blkmirror/blkmirror/qmp/api"
)

// Operator changes how the daemon is watched.
type Operator interface {
	SetLogLevel(level string) error
	StartTrace(path string, o trace.Options) error
	StopTrace() (trace.Totals, error)
}

// nobody is the operator where the daemon has none.
type nobody struct{}

func (nobody) SetLogLevel(string) error               { return qmp.Errorf("There is no log") }
func (nobody) StartTrace(string, trace.Options) error { return qmp.Errorf("There can be no trace") }
func (nobody) StopTrace() (trace.Totals, error) {
	return trace.Totals{}, qmp.Errorf("There is no trace")
}

// XLogLevel changes which messages are logged.
func (h *Handlers) XLogLevel(_ context.Context, a *api.XLogLevelArguments) error {
	return h.config.Operator.SetLogLevel(string(a.Level))
}

// XTraceStart begins to record requests.
func (h *Handlers) XTraceStart(_ context.Context, a *api.XTraceStartArguments) error {
	limit := qmp.Or(a.Limit, trace.DefaultLimit)
	if limit > 1<<50 {
		return qmp.Errorf("Parameter 'limit' expects at most %d bytes", uint64(1)<<50)
	}
	return h.config.Operator.StartTrace(a.Filename, trace.Options{Nodes: a.Nodes, Exports: a.Exports, Limit: int64(limit)})
}

// XTraceStop ends the trace.
func (h *Handlers) XTraceStop(context.Context) (api.TraceTotals, error) {
	t, err := h.config.Operator.StopTrace()
	return api.TraceTotals{Recorded: t.Recorded, Dropped: t.Dropped}, err
}
