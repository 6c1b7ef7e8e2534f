// SPDX-License-Identifier: Apache-2.0

package follow

import (
	"time"

	"github.com/blkmirror/blkmirror/qmp"
	"github.com/blkmirror/blkmirror/qmp/api"
	"github.com/blkmirror/blkmirror/qmp/client"
)

// operationCanceled is the error of a cancelled job that is still listed.
const operationCanceled = "Operation canceled"

// follower knows what has been seen of a job.
type follower struct {
	monitor  Monitor
	goal     Goal
	observer Observer

	job     api.JobInfo // the last numbers; its status is the last one entered
	seen    bool        // the job exists or has existed
	news    []news      // not yet reported
	last    api.JobStatus
	ready   bool // it was ready, at least once
	pending bool // it waits for job-finalize
	listed  bool // the last query told of it

	digest *api.MirrorDigestEvent // what it told of its disks

	// How the job ended, as an event said.
	completed, cancelled bool
	failure              string
}

// news is one thing to report.
type news struct {
	status  api.JobStatus
	failure *api.BlockJobErrorEvent
	at      time.Time
}

// drain takes all events that are there, and tells whether the job has moved.
func (f *follower) drain() (moved bool) {
	for {
		select {
		case e, ok := <-f.monitor.Events():
			if !ok {
				return moved
			}
			moved = f.take(e) || moved
		default:
			return moved
		}
	}
}

// take takes in one event, and tells whether the job has moved. Events that
// make no sense are not ours.
func (f *follower) take(e client.Event) (moved bool) {
	event, err := api.DecodeEvent(e.Name, e.Data)
	if err != nil {
		return false
	}
	switch event := event.(type) {
	case *api.JobStatusChangeEvent:
		if event.ID == f.job.ID {
			f.enter(event.Status)
			return true
		}
	case *api.BlockJobReadyEvent:
		if event.Device == f.job.ID {
			f.ready = true
			f.count(event.Offset, event.Len)
			return true
		}
	case *api.BlockJobPendingEvent:
		if event.ID == f.job.ID {
			f.pending = true
			return true
		}
	case *api.BlockJobCompletedEvent:
		if event.Device == f.job.ID {
			f.completed, f.failure = true, qmp.Or(event.Error, "")
			f.count(event.Offset, event.Len)
			return true
		}
	case *api.BlockJobCancelledEvent:
		if event.Device == f.job.ID {
			f.cancelled = true
			f.count(event.Offset, event.Len)
			return true
		}
	case *api.MirrorDigestEvent:
		if event.Device == f.job.ID {
			f.digest = event
		}
	case *api.BlockdevVerifiedEvent:
		if event.Device == f.job.ID && event.DifferingBytes == 0 && event.SourceDigest != nil {
			f.digest = &api.MirrorDigestEvent{Digest: event.SourceDigest} // that of both
		}
	case *api.BlockJobErrorEvent:
		if event.Device == f.job.ID {
			f.news = append(f.news, news{failure: event, at: e.Time})
		}
	}
	return false
}

func (f *follower) count(current, total int64) {
	f.job.CurrentProgress, f.job.TotalProgress = current, total
}

// enter notes a status.
func (f *follower) enter(s api.JobStatus) {
	f.seen = true
	if s == f.last {
		return
	}
	switch s {
	case api.JobStatusCreated:
		// Whatever was seen before was an earlier job of the same name.
		fresh := follower{monitor: f.monitor, goal: f.goal, observer: f.observer, seen: true}
		fresh.job.ID = f.job.ID
		*f = fresh
	case api.JobStatusReady, api.JobStatusStandby:
		f.ready = true
	}
	f.last = s
	if s != api.JobStatusNull { // then only its name is left
		f.job.Status = s
		f.news = append(f.news, news{status: s})
	}
}

// over tells whether the end of the job was seen.
func (f *follower) over() bool {
	return f.last == api.JobStatusConcluded || f.last == api.JobStatusNull
}

// endKnown tells whether it was seen how the job ended: by an event, or by
// the list, where a job stays that is not dismissed by itself.
func (f *follower) endKnown() bool { return f.completed || f.cancelled || f.listed }

// outcome tells whether following ends here, and how.
func (f *follower) outcome() (Outcome, bool) {
	o := Outcome{Last: f.sample()}
	switch {
	case f.over() && f.cancelled:
		o.Result = Cancelled
	case f.over() && f.failure != "":
		o.Result, o.Error = Failed, f.failure
	case f.over() && f.completed:
		o.Result = Completed
	case f.over() && f.job.Error != nil:
		// It ended before anybody listened, or is of a kind that says so
		// only in the list.
		o.Result, o.Error = Failed, *f.job.Error
		if o.Error == operationCanceled {
			o.Result, o.Error = Cancelled, ""
		}
	case f.over():
		o.Result = Completed
	case f.goal == UntilReady && f.ready && f.last != api.JobStatusAborting:
		o.Result = Ready
	case f.goal == UntilPending && f.pending:
		o.Result = Pending
	default:
		return o, false
	}
	return o, true
}

// report hands over what is new, or else how far the job is.
func (f *follower) report() {
	pending := f.news
	f.news = nil
	progressed := false
	for _, n := range pending {
		if n.failure != nil {
			f.observer.RequestFailed(n.at, *n.failure)
			continue
		}
		s := f.sample()
		s.Job.Status = n.status
		f.observer.Progressed(s)
		progressed = true
	}
	if !progressed {
		f.observer.Progressed(f.sample())
	}
}

func (f *follower) sample() Sample {
	s := Sample{Time: time.Now(), Job: f.job}
	if f.digest != nil { // the job may be gone before it can be asked
		s.Job.Digest, s.Job.DigestMissing = f.digest.Digest, f.digest.Reason
	}
	return s
}
