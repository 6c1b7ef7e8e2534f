// SPDX-License-Identifier: Apache-2.0

package handlers

import (
	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/driver/nbd"
	"github.com/blkmirror/blkmirror/job"
	"github.com/blkmirror/blkmirror/qmp"
	"github.com/blkmirror/blkmirror/qmp/api"
)

// jobEvents tells monitors what happens to jobs.
type jobEvents struct{ emit func(qmp.Event) }

var _ job.Events = jobEvents{}

func (e jobEvents) StatusChanged(id string, s job.Status) {
	e.emit(&api.JobStatusChangeEvent{ID: id, Status: api.JobStatus(s.String())})
}

func (e jobEvents) BecameReady(i job.Info) {
	e.emit(&api.BlockJobReadyEvent{Type: api.JobType(i.Type), Device: i.ID, Len: i.Total, Offset: i.Current, Speed: i.Speed})
}

func (e jobEvents) BecamePending(i job.Info) {
	e.emit(&api.BlockJobPendingEvent{Type: api.JobType(i.Type), ID: i.ID})
}

func (e jobEvents) Completed(i job.Info) {
	e.emit(&api.BlockJobCompletedEvent{Type: api.JobType(i.Type), Device: i.ID, Len: i.Total, Offset: i.Current,
		Speed: i.Speed, Error: nonEmpty(i.Error)})
}

func (e jobEvents) Cancelled(i job.Info) {
	e.emit(&api.BlockJobCancelledEvent{Type: api.JobType(i.Type), Device: i.ID, Len: i.Total, Offset: i.Current,
		Speed: i.Speed})
}

func (e jobEvents) Failed(id string, f job.Failure) {
	event := &api.BlockJobErrorEvent{Device: id, Operation: api.IoOperationTypeWrite,
		Action: api.BlockErrorAction(f.Action.String()), NodeName: nonEmpty(f.Node)}
	if f.Read {
		event.Operation = api.IoOperationTypeRead
	}
	if f.Len > 0 {
		event.Offset, event.Length = &f.Off, &f.Len
	}
	text := job.ErrorText(f.Err)
	event.Errno = &text
	e.emit(event)
}

// tellOfConnection tells monitors when a node loses its server, and when it has it again.
func (h *Handlers) tellOfConnection(n *block.Node) {
	disk, ok := n.Driver().(*connection)
	if !ok {
		return
	}
	disk.OnState(func(s nbd.State, why error) {
		event := &api.BlockNodeConnectionEvent{NodeName: n.Name(), State: connectionStates[s]}
		if why != nil {
			event.Reason = nonEmpty(why.Error())
		}
		h.config.Emit(event)
	})
}

var connectionStates = [...]api.BlockNodeConnectionState{
	nbd.Connected: api.BlockNodeConnectionStateConnected, nbd.Waiting: api.BlockNodeConnectionStateWaiting,
	nbd.Failing: api.BlockNodeConnectionStateFailing, nbd.Broken: api.BlockNodeConnectionStateBroken,
}
