// SPDX-License-Identifier: Apache-2.0

package follow

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/blkmirror/blkmirror/qmp"
	"github.com/blkmirror/blkmirror/qmp/api"
	"github.com/blkmirror/blkmirror/qmp/client"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// round is what a monitor has to tell at one query: first events, then jobs.
type round struct {
	events []string // NAME {DATA}
	jobs   string   // of query-jobs
	after  []string // events that come 10 ms later
	err    error    // of the query, in place of jobs
	hangup bool     // close the channel of events before the answer
}

// monitor is a scripted one. Its last round is repeated.
type monitor struct {
	t       *testing.T
	rounds  []round
	queries int
	events  chan client.Event

	sending sync.Mutex // held for sending to events, and for closing it
	closed  bool
}

func (m *monitor) Events() <-chan client.Event { return m.events }

func (m *monitor) Execute(_ context.Context, command string, _, result any) error {
	if command != "query-jobs" {
		m.t.Errorf("executed %s", command)
	}
	r := m.rounds[min(m.queries, len(m.rounds)-1)]
	m.queries++
	m.emit(r.events)
	if r.hangup {
		m.hangUp()
	}
	if r.err != nil {
		return r.err
	}
	if len(r.after) > 0 {
		time.AfterFunc(10*time.Millisecond, func() { m.emit(r.after) })
	}
	list := result.(*[]api.JobInfo)
	for _, text := range strings.Split(r.jobs, "|") {
		if text != "" {
			var info api.JobInfo
			if err := info.UnmarshalJSON([]byte(text)); err != nil {
				m.t.Fatal(err)
			}
			*list = append(*list, info)
		}
	}
	return nil
}

func (m *monitor) hangUp() {
	m.sending.Lock()
	defer m.sending.Unlock()
	if !m.closed {
		close(m.events)
	}
	m.closed = true
}

func (m *monitor) emit(events []string) {
	m.sending.Lock()
	defer m.sending.Unlock()
	for _, text := range events {
		name, data, _ := strings.Cut(text, " ")
		value, err := qmp.NewReader(strings.NewReader(data)).Next()
		if err != nil {
			m.t.Errorf("%s: %v", text, err)
			return
		}
		m.events <- client.Event{Name: name, Time: time.Now(), Data: value.(*qmp.Object)}
	}
}

// recorder is an observer.
type recorder struct {
	statuses []string // without repetitions
	failures int
	last     Sample
}

func (r *recorder) Progressed(s Sample) {
	if status := string(s.Job.Status); len(r.statuses) == 0 || r.statuses[len(r.statuses)-1] != status {
		r.statuses = append(r.statuses, status)
	}
	r.last = s
}

func (r *recorder) RequestFailed(time.Time, api.BlockJobErrorEvent) { r.failures++ }

func status(statuses ...string) (events []string) {
	for _, s := range statuses {
		events = append(events, `JOB_STATUS_CHANGE {"id": "m", "status": "`+s+`"}`)
	}
	return events
}

func info(id, status string, current, total int, more string) string {
	return fmt.Sprintf(`{"id": %q, "type": "mirror", "status": %q, "current-progress": %d, "total-progress": %d%s}`,
		id, status, current, total, more)
}

const (
	readyEvent     = `BLOCK_JOB_READY {"type": "mirror", "device": "m", "len": 100, "offset": 100, "speed": 0}`
	completedEvent = `BLOCK_JOB_COMPLETED {"type": "mirror", "device": "m", "len": 120, "offset": 120, "speed": 0}`
	failedEvent    = `BLOCK_JOB_COMPLETED {"type": "mirror", "device": "m", "len": 100, "offset": 60, "speed": 0, "error": "No space left on device"}`
	cancelledEvent = `BLOCK_JOB_CANCELLED {"type": "mirror", "device": "m", "len": 100, "offset": 60, "speed": 0}`
	pendingEvent   = `BLOCK_JOB_PENDING {"type": "mirror", "id": "m"}`
	errorEvent     = `BLOCK_JOB_ERROR {"device": "m", "operation": "write", "action": "ignore"}`
)

// plus appends to a list of events.
func plus(events []string, more ...string) []string { return append(slices.Clone(events), more...) }

func TestJob(t *testing.T) {
	lost := errors.New("connection lost")
	running := info("m", "running", 10, 100, "")
	tests := map[string]struct {
		goal     Goal
		rounds   []round
		want     Result
		err      error
		reason   string
		current  int64
		statuses string
	}{
		"until ready, by events": {goal: UntilReady, want: Ready, current: 100, statuses: "created running ready",
			rounds: []round{
				{events: status("created", "running"), jobs: running},
				{jobs: running, after: status("ready")},
				{events: []string{readyEvent}, jobs: info("m", "ready", 100, 100, "")},
			}},
		"already ready": {goal: UntilReady, want: Ready, current: 100, statuses: "ready",
			rounds: []round{{jobs: info("m", "ready", 100, 100, "")}}},
		"already in standby": {goal: UntilReady, want: Ready, current: 100, statuses: "standby",
			rounds: []round{{jobs: info("m", "standby", 100, 100, "")}}},
		"other jobs do not count": {goal: UntilReady, want: Ready, current: 100, statuses: "running ready",
			rounds: []round{
				{events: []string{`JOB_STATUS_CHANGE {"id": "x", "status": "concluded"}`, strings.Replace(completedEvent, `"m"`, `"x"`, 1)},
					jobs: info("x", "concluded", 1, 1, "") + "|" + running},
				{jobs: info("m", "ready", 100, 100, "")}}},
		"to the end, past ready": {want: Completed, current: 120, statuses: "running ready waiting pending concluded",
			rounds: []round{
				{jobs: running},
				{events: plus(status("ready"), readyEvent), jobs: info("m", "ready", 100, 100, "")},
				{jobs: info("m", "ready", 100, 100, ""), after: plus(status("waiting", "pending"), plus([]string{completedEvent}, status("concluded", "null")...)...)},
				{},
			}},
		"gone before it was asked for": {goal: UntilReady, want: Completed, current: 120, statuses: "created running ready waiting pending concluded",
			rounds: []round{{events: plus(status("created", "running", "ready"), plus([]string{readyEvent},
				plus(status("waiting", "pending"), plus([]string{completedEvent}, status("concluded", "null")...)...)...)...)}}},
		"fails": {want: Failed, reason: "No space left on device", current: 60, statuses: "running aborting concluded",
			rounds: []round{{jobs: running}, {events: plus(status("aborting"), plus([]string{failedEvent}, status("concluded", "null")...)...)}}},
		"fails while it should become ready": {goal: UntilReady, want: Failed, reason: "No space left on device", current: 60,
			statuses: "running ready aborting concluded",
			rounds:   []round{{jobs: running}, {events: plus(status("ready", "aborting"), plus([]string{failedEvent}, status("concluded", "null")...)...)}}},
		"cancelled": {goal: UntilReady, want: Cancelled, current: 60, statuses: "running aborting concluded",
			rounds: []round{{jobs: running}, {events: plus(status("aborting"), plus([]string{cancelledEvent}, status("concluded", "null")...)...)}}},
		"pending": {goal: UntilPending, want: Pending, current: 100, statuses: "ready waiting pending",
			rounds: []round{{jobs: info("m", "ready", 100, 100, "")},
				{events: plus(status("waiting", "pending"), pendingEvent), jobs: info("m", "pending", 100, 100, "")}}},
		"pending for a moment only": {goal: UntilPending, want: Completed, current: 120, statuses: "ready waiting pending concluded",
			rounds: []round{{jobs: info("m", "ready", 100, 100, "")},
				{events: status("waiting", "pending"), jobs: info("m", "pending", 100, 100, "")},
				{events: plus([]string{completedEvent}, status("concluded")...), jobs: info("m", "concluded", 120, 120, "")}}},
		"concluded before, with success": {want: Completed, current: 5, statuses: "concluded",
			rounds: []round{{jobs: info("m", "concluded", 5, 5, "")}}},
		"concluded before, with an error": {want: Failed, reason: "no", current: 5, statuses: "concluded",
			rounds: []round{{jobs: info("m", "concluded", 5, 9, `, "error": "no"`)}}},
		"concluded before, cancelled": {want: Cancelled, current: 5, statuses: "concluded",
			rounds: []round{{jobs: info("m", "concluded", 5, 9, `, "error": "Operation canceled"`)}}},
		"a second job of the name": {want: Failed, reason: "No space left on device", current: 60, statuses: "created running aborting concluded",
			rounds: []round{{events: plus(status("created", "running"), plus([]string{completedEvent},
				status("concluded", "null", "created", "running")...)...), jobs: running},
				{events: plus(status("aborting"), plus([]string{failedEvent}, status("concluded", "null")...)...)}}},
		"the list is older than the events": {want: Cancelled, current: 60, statuses: "running aborting concluded",
			rounds: []round{{jobs: running},
				{events: plus(status("aborting"), plus([]string{cancelledEvent}, status("concluded", "null")...)...),
					jobs: info("m", "aborting", 60, 100, "")}, {}}},
		"the list is older than the end of a job without events of its own": {want: Failed, reason: "no", current: 1, statuses: "running aborting concluded",
			rounds: []round{{jobs: running},
				{events: status("aborting", "concluded"), jobs: info("m", "aborting", 1, 1, "")},
				{jobs: info("m", "concluded", 1, 1, `, "error": "no"`)}}},
		"no such job":        {rounds: []round{{jobs: info("x", "running", 1, 2, "")}}, err: ErrNoJob},
		"the end was lost":   {rounds: []round{{jobs: running}, {events: status("null")}}, err: errUnseen, statuses: "running"},
		"all of it was lost": {rounds: []round{{jobs: running}, {}}, err: errUnseen, statuses: "running"},
		"connection lost":    {rounds: []round{{jobs: running}, {err: lost, hangup: true}}, err: lost, statuses: "running"},
		"connection lost after the end": {want: Cancelled, current: 60, statuses: "running aborting concluded",
			rounds: []round{{jobs: running, after: plus(status("aborting"), plus([]string{cancelledEvent}, status("concluded", "null")...)...)},
				{err: lost, hangup: true}}},
		"events that make no sense": {goal: UntilReady, want: Ready, current: 100, statuses: "running ready",
			rounds: []round{{events: []string{`JOB_STATUS_CHANGE {"id": 5}`, `WHAT {}`, `BLOCK_JOB_READY {}`}, jobs: running},
				{jobs: info("m", "ready", 100, 100, "")}}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := &monitor{t: t, rounds: test.rounds, events: make(chan client.Event, 100)}
				r := &recorder{}
				outcome, err := Job(t.Context(), m, "m", Options{Goal: test.goal}, r)
				if !errors.Is(err, test.err) {
					t.Fatalf("error %v, want %v", err, test.err)
				}
				if got := strings.Join(r.statuses, " "); got != test.statuses {
					t.Errorf("statuses %q, want %q", got, test.statuses)
				}
				if err != nil {
					if !strings.Contains(err.Error(), "job 'm'") {
						t.Errorf("the error does not name the job: %v", err)
					}
					return
				}
				if outcome.Result != test.want || outcome.Error != test.reason || outcome.Last.Job.CurrentProgress != test.current {
					t.Errorf("outcome %v %q at %d, want %v %q at %d", outcome.Result, outcome.Error, outcome.Last.Job.CurrentProgress,
						test.want, test.reason, test.current)
				}
			})
		})
	}
}

// TestKnown is a job that is gone before it could be asked.
func TestKnown(t *testing.T) {
	copied := int64(90)
	m := &monitor{t: t, events: make(chan client.Event, 10), rounds: []round{{events: plus([]string{completedEvent}, status("concluded", "null")...)}}}
	known := api.JobInfo{ID: "m", Status: "ready", CurrentProgress: 100, TotalProgress: 100, JobWork: api.JobWork{CopiedBytes: &copied}}
	r := &recorder{}
	outcome, err := Job(t.Context(), m, "m", Options{Known: known}, r)
	if err != nil {
		t.Fatal(err)
	}
	last := outcome.Last.Job
	if last.CopiedBytes == nil || *last.CopiedBytes != 90 || last.CurrentProgress != 120 || last.Status != "concluded" {
		t.Errorf("last: %s", qmp.Encode(&last))
	}
	if got := strings.Join(r.statuses, " "); got != "concluded" {
		t.Errorf("statuses %q", got)
	}
}

// TestJobIsAskedNowAndThen checks that numbers come without any event.
func TestJobIsAskedNowAndThen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &monitor{t: t, events: make(chan client.Event, 1)}
		for i := range 10 {
			m.rounds = append(m.rounds, round{jobs: info("m", "running", i, 100, "")})
		}
		m.rounds = append(m.rounds, round{jobs: info("m", "ready", 100, 100, "")})
		began := time.Now()
		if _, err := Job(t.Context(), m, "m", Options{Goal: UntilReady, Interval: time.Second}, &recorder{}); err != nil {
			t.Fatal(err)
		}
		if spent := time.Since(began); spent != 10*time.Second || m.queries != 11 {
			t.Errorf("%d queries in %v", m.queries, spent)
		}
	})
}

// TestFailedRequests checks that a flood of them reaches the observer, and
// does not make a flood of queries.
func TestFailedRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		running := info("m", "running", 10, 100, "")
		m := &monitor{t: t, events: make(chan client.Event, 10),
			rounds: []round{{jobs: running}, {jobs: running}, {jobs: info("m", "ready", 100, 100, "")}}}
		go func() {
			for range 5000 {
				m.emit([]string{errorEvent})
			}
		}()
		r := &recorder{}
		if _, err := Job(t.Context(), m, "m", Options{Goal: UntilReady}, r); err != nil {
			t.Fatal(err)
		}
		if r.failures != 5000 || m.queries != 3 {
			t.Errorf("%d failed requests, %d queries", r.failures, m.queries)
		}
	})
}

func TestCancelledContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &monitor{t: t, events: make(chan client.Event, 1), rounds: []round{{jobs: info("m", "running", 10, 100, "")}}}
		cause := errors.New("enough")
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(time.Minute, func() { cancel(cause) })
		outcome, err := Job(ctx, m, "m", Options{}, &recorder{})
		if !errors.Is(err, cause) {
			t.Errorf("error %v", err)
		}
		if outcome.Last.Job.CurrentProgress != 10 {
			t.Errorf("what was last seen: %+v", outcome.Last)
		}
	})
}
