// SPDX-License-Identifier: Apache-2.0

package progress

import (
	"fmt"
	"strings"
	"time"

	"github.com/blkmirror/blkmirror/cmd/blkmirror/bytesize"
	"github.com/blkmirror/blkmirror/cmd/blkmirror/follow"
	"github.com/blkmirror/blkmirror/qmp"
	"github.com/blkmirror/blkmirror/qmp/api"
)

// Work returns what was copied, zeroed and skipped in words, or "" if the
// daemon does not count that.
func Work(w api.JobWork) string {
	var parts []string
	for _, p := range []struct {
		what  string
		bytes *int64
	}{{"copied", w.CopiedBytes}, {"zeroed", w.ZeroedBytes}, {"skipped", w.SkippedBytes}, {"offloaded", w.OffloadedBytes}} {
		if p.bytes != nil {
			parts = append(parts, p.what+" "+bytesize.Format(*p.bytes))
		}
	}
	return strings.Join(parts, ", ")
}

// line describes a job in one line.
func line(s follow.Sample, f Figures) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s %d%%, %s of %s", s.Job.ID, s.Job.Status, f.Percent,
		bytesize.Format(s.Job.CurrentProgress), bytesize.Format(s.Job.TotalProgress))
	if work := Work(s.Job.JobWork); work != "" {
		b.WriteString(", " + work)
	}
	if rate := rateText(s, f); rate != "" {
		b.WriteString(", " + rate)
	}
	return b.String()
}

// rateText is the rate and the time left of a job that copies. Once a mirror
// is ready, its rate is only that of the guests.
func rateText(s follow.Sample, f Figures) string {
	if s.Job.Status != api.JobStatusRunning {
		return ""
	}
	if f.Rate < 0 {
		return timeLeft(f)
	}
	return bytesize.Format(f.Rate) + "/s, " + timeLeft(f)
}

func timeLeft(f Figures) string {
	switch {
	case f.Left < 0:
		return "time left unknown"
	case f.Left >= maxLeft:
		return "weeks left"
	}
	return f.Left.Round(time.Second).String() + " left"
}

// failureText describes a failed request.
func failureText(e api.BlockJobErrorEvent) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: a %s failed", e.Device, e.Operation)
	if e.NodeName != nil {
		fmt.Fprintf(&b, " on node '%s'", *e.NodeName)
	}
	if e.Offset != nil && e.Length != nil {
		fmt.Fprintf(&b, ", %d bytes at %d", *e.Length, *e.Offset)
	}
	if text := qmp.Or(e.Errno, ""); text != "" {
		fmt.Fprintf(&b, " (%s)", text)
	}
	switch e.Action {
	case api.BlockErrorActionStop:
		b.WriteString("; the job waits for resume")
	case api.BlockErrorActionIgnore:
		b.WriteString("; it is tried again")
	case api.BlockErrorActionReport:
		b.WriteString("; the job fails")
	}
	return b.String()
}
