// SPDX-License-Identifier: Apache-2.0

package progress

import (
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/term"

	"github.com/blkmirror/blkmirror/cmd/blkmirror/follow"
	"github.com/blkmirror/blkmirror/qmp"
	"github.com/blkmirror/blkmirror/qmp/api"
)

// linePeriod is the least time between two lines that say nothing new but
// numbers, and between two failed requests.
const linePeriod = time.Second

// Display shows a job. Its methods are called by one goroutine.
type Display interface {
	follow.Observer
	// Close ends it, with what is shown last left where it is, and returns
	// the first error of the output.
	Close() error
}

// New returns the display that suits w: a bar if it is a terminal with room
// for one, otherwise lines.
func New(w io.Writer) Display {
	if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		columns, rows, err := term.GetSize(int(f.Fd()))
		if err == nil && columns >= 2*barColumns && rows > barRows {
			return NewBar(w, 0)
		}
	}
	return NewLines(w)
}

// printer writes lines, not too many of them, and keeps the first error.
type printer struct {
	w          io.Writer
	err        error
	failedAt   time.Time // when the last failed request was shown
	unreported int       // failed requests since then
}

func (p *printer) print(format string, args ...any) {
	if p.err == nil {
		_, p.err = fmt.Fprintf(p.w, format+"\n", args...)
	}
}

// due tells whether a failed request is to be shown, and how many were not
// since the last one.
func (p *printer) due(at time.Time) (unreported int, ok bool) {
	if !p.failedAt.IsZero() && at.Sub(p.failedAt) < linePeriod {
		p.unreported++
		return 0, false
	}
	unreported = p.unreported
	p.failedAt, p.unreported = at, 0
	return unreported, true
}

// failure shows a failed request.
func (p *printer) failure(at time.Time, e api.BlockJobErrorEvent) {
	unreported, ok := p.due(at)
	switch {
	case !ok:
	case unreported > 0:
		p.print("%s (and %d others before it)", failureText(e), unreported)
	default:
		p.print("%s", failureText(e))
	}
}

// lines shows a job as text: a line per change of the status, and one per
// second at most otherwise.
type lines struct {
	printer
	pace
	meter Meter
}

// NewLines returns a display of plain lines.
func NewLines(w io.Writer) Display { return &lines{printer: printer{w: w}} }

func (l *lines) Progressed(s follow.Sample) {
	figures := l.meter.Add(s)
	if l.pass(s) {
		l.print("%s", line(s, figures))
	}
}

func (l *lines) RequestFailed(at time.Time, e api.BlockJobErrorEvent) { l.failure(at, e) }
func (l *lines) Close() error                                         { return l.err }

// pace drops samples that come too soon.
type pace struct {
	shownAt time.Time
	shown   api.JobStatus
}

func (p *pace) pass(s follow.Sample) bool {
	if s.Job.Status == p.shown && s.Time.Sub(p.shownAt) < linePeriod {
		return false
	}
	p.shownAt, p.shown = s.Time, s.Job.Status
	return true
}

// jsonLines shows a job as JSON objects, one per line.
type jsonLines struct {
	printer
	pace
	meter Meter
}

// NewJSON returns a display of JSON lines: what query-jobs tells of the job,
// with rate and seconds-left, and a BLOCK_JOB_ERROR event as it came.
func NewJSON(w io.Writer) Display { return &jsonLines{printer: printer{w: w}} }

func (l *jsonLines) Progressed(s follow.Sample) {
	figures := l.meter.Add(s)
	if l.pass(s) {
		l.print("%s", qmp.Encode(JSON(s, figures)))
	}
}

// JSON returns a sample with its figures as a job of query-jobs.
func JSON(s follow.Sample, f Figures) *api.JobInfo {
	job := s.Job
	if job.Status == api.JobStatusRunning && f.Rate >= 0 {
		job.Rate = &f.Rate
	}
	if job.Status == api.JobStatusRunning && f.Left >= 0 {
		seconds := int64(f.Left.Round(time.Second).Seconds())
		job.SecondsLeft = &seconds
	}
	return &job
}

func (l *jsonLines) RequestFailed(at time.Time, e api.BlockJobErrorEvent) {
	if _, ok := l.due(at); ok {
		l.print("%s", qmp.Encode(qmp.NewObject(qmp.Member{Name: "event", Value: e.EventName()},
			qmp.Member{Name: "data", Value: &e})))
	}
}

func (l *jsonLines) Close() error { return l.err }
