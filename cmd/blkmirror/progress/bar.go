// SPDX-License-Identifier: Apache-2.0

package progress

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"github.com/blkmirror/blkmirror/cmd/blkmirror/bytesize"
	"github.com/blkmirror/blkmirror/cmd/blkmirror/follow"
	"github.com/blkmirror/blkmirror/qmp/api"
)

// Sizes on a terminal.
const (
	barColumns    = 30
	barRows       = 2 // the bar, and what stands below it
	statusColumns = 9
)

// bar shows a job as a bar that is drawn anew a few times per second. It goes
// on where it is when the job is ready, and counts what guests write.
type bar struct {
	printer // prints above the bar
	meter   Meter
	pool    *mpb.Progress
	bar     *mpb.Bar

	// What is drawn next. The pool draws in a goroutine of its own.
	mu struct {
		sync.Mutex
		sample  follow.Sample
		figures Figures
	}
}

// NewBar returns a bar. Where w is not a terminal, columns is taken for the
// width of one; 0 is for a terminal, which knows its own.
func NewBar(w io.Writer, columns int) Display {
	b := &bar{}
	options := []mpb.ContainerOption{mpb.WithOutput(w), mpb.WithRefreshRate(100 * time.Millisecond)}
	if columns > 0 {
		options = append(options, mpb.WithWidth(columns), mpb.WithAutoRefresh())
	}
	b.pool = mpb.New(options...)
	b.printer.w = above{b.pool}
	return b
}

// above writes above the bar; once the bar has failed or ended, nowhere.
type above struct{ pool *mpb.Progress }

func (a above) Write(text []byte) (int, error) {
	n, err := a.pool.Write(text)
	if errors.Is(err, mpb.ErrDone) {
		return len(text), nil
	}
	return n, err
}

// Progressed moves the bar. It begins with the first sample: before that
// there is nothing to draw.
func (b *bar) Progressed(s follow.Sample) {
	figures := b.meter.Add(s)
	b.mu.Lock()
	b.mu.sample, b.mu.figures = s, figures
	b.mu.Unlock()
	if b.bar == nil && !b.begin() {
		return
	}
	b.bar.SetTotal(max(s.Job.TotalProgress, 1), false)
	b.bar.SetCurrent(s.Job.CurrentProgress)
}

// begin puts the bar on the terminal, and tells whether that still works.
func (b *bar) begin() bool {
	filler := mpb.BarStyle().Rbound("]").Build()
	// A total of 0 keeps the bar from ending by itself at 100%.
	added, err := b.pool.Add(0, filler, mpb.BarWidth(barColumns), mpb.BarFillerTrim(),
		mpb.PrependDecorators(decor.Any(b.before)), mpb.AppendDecorators(decor.Any(b.behind)),
		mpb.BarExtender(mpb.BarFillerFunc(b.below), false))
	if err != nil {
		b.err = errors.Join(b.err, err)
		return false
	}
	b.bar = added
	return true
}

// before is what stands before the bar.
func (b *bar) before(decor.Statistics) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return fmt.Sprintf("%s %-*s %3d%% ", b.mu.sample.Job.ID, statusColumns, b.mu.sample.Job.Status, b.mu.figures.Percent)
}

// behind is what stands behind the bar.
func (b *bar) behind(decor.Statistics) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	job := &b.mu.sample.Job
	return fmt.Sprintf(" %s of %s", bytesize.Format(job.CurrentProgress), bytesize.Format(job.TotalProgress))
}

// below is the line below the bar. It may not wrap, else the next one would
// be drawn in the wrong place.
func (b *bar) below(w io.Writer, stat decor.Statistics) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	text := Work(b.mu.sample.Job.JobWork)
	if rate := rateText(b.mu.sample, b.mu.figures); rate != "" {
		text += ", " + rate
	}
	text = "  " + strings.TrimPrefix(text, ", ")
	_, err := fmt.Fprintln(w, text[:min(len(text), max(stat.AvailableWidth, 0))])
	return err
}

func (b *bar) RequestFailed(at time.Time, e api.BlockJobErrorEvent) { b.failure(at, e) }

// Close draws the bar for the last time, and ends the goroutines behind it.
func (b *bar) Close() error {
	if b.bar != nil {
		b.bar.Abort(false) // that is: keep it as it is
		b.bar.Wait()
	}
	b.pool.Wait()
	return b.err
}
