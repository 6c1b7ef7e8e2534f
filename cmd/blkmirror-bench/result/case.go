// SPDX-License-Identifier: Apache-2.0

package result

import "slices"

// Status is how the runs of a contender went.
type Status string

const (
	OK           Status = "ok"
	NotSupported Status = "not supported" // the contender refused what was asked for
	Failed       Status = "failed"
	NotRun       Status = "not run"
)

// Row is what one contender did in a case.
type Row struct {
	Contender string   `json:"contender"`
	Status    Status   `json:"status"`
	Note      string   `json:"note,omitempty"` // why the status is not OK, or what failed in between
	Samples   []Sample `json:"samples,omitempty"`
	Failures  int      `json:"failures,omitempty"` // runs that failed, besides those with samples
	Verified  int      `json:"verified,omitempty"` // runs whose target was compared with its source, and was equal
	// Traced is what a run of its own under strace counted, which takes no part in anything else.
	Traced Sample `json:"traced,omitempty"`
}

// Values are those of one metric, of all samples that have it.
func (r *Row) Values(metric string) (values []float64) {
	for _, s := range r.Samples {
		if v, ok := s[metric]; ok {
			values = append(values, v)
		}
	}
	return values
}

// Summary sums up one metric; ok is false if no sample has it.
func (r *Row) Summary(m Metric) (s Summary, ok bool) {
	return Summarize(r.Values(m.Name), m.Better)
}

// Case is one thing that was measured.
type Case struct {
	Scenario string   `json:"scenario"`
	Name     string   `json:"name"`
	Note     string   `json:"note,omitempty"` // what exactly is measured
	Metrics  []Metric `json:"metrics"`
	Rows     []*Row   `json:"rows"`
	// Verifies says that every run has a target that must be compared with its source.
	Verifies bool `json:"verifies"`
	// X is the place of the case on the axis of a plot.
	X float64 `json:"x,omitempty"`
}

// Row finds the row of a contender, nil if there is none.
func (c *Case) Row(contender string) *Row {
	at := slices.IndexFunc(c.Rows, func(r *Row) bool { return r.Contender == contender })
	if at < 0 {
		return nil
	}
	return c.Rows[at]
}

// Comparison sets ours beside the best of the others, in one metric of a case.
type Comparison struct {
	Scenario string  `json:"scenario"`
	Case     string  `json:"case"`
	Metric   string  `json:"metric"`
	Title    string  `json:"-"`
	Ours     float64 `json:"ours"` // the best value
	Peer     string  `json:"peer"` // who of the others has the best value
	Theirs   float64 `json:"theirs"`
	Ratio    float64 `json:"ratio"`         // of the best values
	Medians  float64 `json:"ratio_medians"` // of our median and the best median of any other contender
	// Ahead says that ours is at least as good.
	Ahead bool `json:"ahead"`
}

// Compare sets ours beside the best of the others in every metric that has a direction.
func (c *Case) Compare(ours string) (found []Comparison) {
	row := c.Row(ours)
	if row == nil {
		return nil
	}
	for _, m := range c.Metrics {
		our, ok := row.Summary(m)
		if !ok || m.Better == Neither {
			continue
		}
		peer, best, median := "", 0.0, 0.0
		better := func(a, b float64) bool { return (m.Better == Lower) == (a < b) && a != b }
		for _, r := range c.Rows {
			s, ok := r.Summary(m)
			if !ok || r == row {
				continue
			}
			if peer == "" || better(s.Median, median) {
				median = s.Median
			}
			if peer == "" || better(s.Best, best) {
				peer, best = r.Contender, s.Best
			}
		}
		if peer == "" {
			continue
		}
		ratio, ok := Ratio(our.Best, best)
		medians, ok2 := Ratio(our.Median, median)
		if ok && ok2 {
			found = append(found, Comparison{Scenario: c.Scenario, Case: c.Name, Metric: m.Name, Title: m.Title, Ours: our.Best,
				Peer: peer, Theirs: best, Ratio: ratio, Medians: medians, Ahead: !better(best, our.Best)})
		}
	}
	return found
}
