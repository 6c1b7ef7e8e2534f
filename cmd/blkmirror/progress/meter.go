// SPDX-License-Identifier: Apache-2.0

package progress

import (
	"time"

	"github.com/blkmirror/blkmirror/cmd/blkmirror/follow"
	"github.com/blkmirror/blkmirror/qmp"
)

// window is the time over which the rate is an average.
const window = 5 * time.Second

// Figures are what can be derived from samples.
type Figures struct {
	Percent int           // of what is known to be to do; 100 only when nothing is left
	Rate    int64         // bytes of work per second; negative if unknown
	Left    time.Duration // until nothing is left; negative if unknown
}

// Meter derives figures from the samples of one job.
type Meter struct {
	points []point
}

// point is how much work was done at a time.
type point struct {
	at   time.Time
	work int64
}

// Add takes the next sample.
func (m *Meter) Add(s follow.Sample) Figures {
	j := &s.Job
	work := j.CurrentProgress
	if j.CopiedBytes != nil {
		work = *j.CopiedBytes + qmp.Or(j.ZeroedBytes, 0) + qmp.Or(j.OffloadedBytes, 0)
	}
	m.points = append(m.points, point{s.Time, work})
	// One point from before the window stays, to span it.
	for len(m.points) > 2 && s.Time.Sub(m.points[1].at) >= window {
		m.points = m.points[1:]
	}

	f := Figures{Left: -1, Percent: 100, Rate: -1}
	if j.CurrentProgress < j.TotalProgress {
		f.Percent = int(min(99, float64(j.CurrentProgress)/float64(j.TotalProgress)*100))
	}
	first := m.points[0]
	if spent := s.Time.Sub(first.at); spent > 0 {
		f.Rate = max(0, int64(float64(work-first.work)/spent.Seconds()))
	}
	f.Rate = qmp.Or(j.Rate, f.Rate)
	left := qmp.Or(j.DirtyBytes, j.TotalProgress-j.CurrentProgress)
	switch {
	case j.SecondsLeft != nil:
		f.Left = time.Duration(*j.SecondsLeft) * time.Second
	case left == 0:
		f.Left = 0
	case f.Rate > 0:
		f.Left = time.Duration(min(float64(left)/float64(f.Rate), maxLeft.Seconds()) * float64(time.Second))
	}
	return f
}

// maxLeft is more than anybody waits for.
const maxLeft = 1000 * time.Hour
