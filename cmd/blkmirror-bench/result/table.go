// SPDX-License-Identifier: Apache-2.0

package result

import (
	"fmt"
	"io"
	"math"
	"strings"
	"unicode/utf8"
)

// Format writes a value with about three digits that count.
func Format(v float64) string {
	switch a := math.Abs(v); {
	case v == math.Trunc(v) && a < 1e6:
		return fmt.Sprintf("%.0f", v)
	case a >= 100:
		return fmt.Sprintf("%.0f", v)
	case a >= 10:
		return fmt.Sprintf("%.1f", v)
	case a >= 1:
		return fmt.Sprintf("%.2f", v)
	case a >= 0.1:
		return fmt.Sprintf("%.3f", v)
	default:
		return fmt.Sprintf("%.4f", v)
	}
}

// WriteCase writes a case as a table in Markdown that is aligned for reading as it is. Each metric with a direction has its
// best value, its median, and ours divided by this row's best; other metrics have their median. ours is the
// contender that ratios are of.
func WriteCase(w io.Writer, c *Case, ours string) error {
	head := []string{"contender"}
	for _, m := range c.Metrics {
		switch m.Better {
		case Lower:
			head = append(head, m.Title+" min", "median", "ours÷")
		case Higher:
			head = append(head, m.Title+" max", "median", "ours÷")
		default:
			head = append(head, m.Title)
		}
	}
	traced := tracedNames(c)
	head = append(head, traced...)
	head = append(head, "runs")
	if c.Verifies {
		head = append(head, "verified")
	}
	rows := [][]string{head}
	var notes []string
	our := c.Row(ours)
	for _, r := range c.Rows {
		cells := []string{r.Contender}
		for _, m := range c.Metrics {
			cells = append(cells, metricCells(r, our, m)...)
		}
		for _, name := range traced {
			cell := "-"
			if v, ok := r.Traced[name]; ok {
				cell = Format(v)
			}
			cells = append(cells, cell)
		}
		runs := fmt.Sprint(len(r.Samples))
		if len(r.Samples) == 0 {
			runs = string(r.Status)
		} else if r.Failures > 0 {
			runs += fmt.Sprintf(", %d failed", r.Failures)
		}
		cells = append(cells, runs)
		if c.Verifies {
			cells = append(cells, verified(r))
		}
		rows = append(rows, cells)
		if r.Note != "" {
			status := string(r.Status)
			if r.Status == OK {
				status = "failed once or more"
			}
			notes = append(notes, fmt.Sprintf("- %s: %s: %s\n", r.Contender, status, strings.Join(strings.Fields(r.Note), " ")))
		}
	}
	var b strings.Builder
	fmt.Fprintf(&b, "### %s %s\n\n", c.Scenario, c.Name)
	if c.Note != "" {
		fmt.Fprintf(&b, "%s\n\n", c.Note)
	}
	writeRows(&b, rows)
	if len(notes) > 0 {
		b.WriteString("\n" + strings.Join(notes, ""))
	}
	b.WriteString("\n")
	_, err := io.WriteString(w, b.String())
	return err
}

func verified(r *Row) string {
	switch {
	case len(r.Samples) == 0:
		return "-"
	case r.Verified == len(r.Samples):
		return "equal"
	default:
		return fmt.Sprintf("%d of %d", r.Verified, len(r.Samples))
	}
}

func metricCells(r, our *Row, m Metric) []string {
	s, ok := r.Summary(m)
	if m.Better == Neither {
		if !ok {
			return []string{"-"}
		}
		return []string{Format(s.Median)}
	}
	if !ok {
		return []string{"-", "-", "-"}
	}
	cells := []string{Format(s.Best), Format(s.Median), "-"}
	if our != nil && our != r {
		if o, ok := our.Summary(m); ok {
			if ratio, ok := Ratio(o.Best, s.Best); ok {
				cells[2] = fmt.Sprintf("%.2f", ratio)
			}
		}
	}
	return cells
}

// tracedNames are the names of all that was traced, in the order of their appearance.
func tracedNames(c *Case) (names []string) {
	for _, name := range []string{TracedCalls, TracedOnTarget} {
		for _, r := range c.Rows {
			if _, ok := r.Traced[name]; ok {
				names = append(names, name)
				break
			}
		}
	}
	return names
}

// What a run under strace counts.
const (
	TracedCalls    = "calls/op"     // system calls of an operation
	TracedOnTarget = "target calls" // system calls that write to the target or allocate there
)

// WriteComparisons writes ours beside the best of the others.
func WriteComparisons(w io.Writer, found []Comparison) error {
	rows := [][]string{{"scenario", "metric", "ours", "best peer", "theirs", "ours÷theirs", "of medians", ""}}
	for _, f := range found {
		mark := "behind"
		if f.Ahead {
			mark = ""
		}
		rows = append(rows, []string{f.Scenario + " " + f.Case, f.Title, Format(f.Ours), f.Peer, Format(f.Theirs),
			fmt.Sprintf("%.2f", f.Ratio), fmt.Sprintf("%.2f", f.Medians), mark})
	}
	var b strings.Builder
	b.WriteString("### Ours beside the best peer\n\n")
	writeRows(&b, rows)
	b.WriteString("\n")
	_, err := io.WriteString(w, b.String())
	return err
}

// writeRows writes a table in Markdown, the first row of which is its head, with columns of equal width; all but the first
// are aligned to the right.
func writeRows(b *strings.Builder, rows [][]string) {
	width := make([]int, len(rows[0]))
	for _, row := range rows {
		for i, cell := range row {
			width[i] = max(width[i], utf8.RuneCountInString(cell), 3)
		}
	}
	line := func(row []string) {
		for i, cell := range row {
			space := strings.Repeat(" ", width[i]-utf8.RuneCountInString(cell))
			if i == 0 {
				b.WriteString("| " + cell + space)
			} else {
				b.WriteString(" | " + space + cell)
			}
		}
		b.WriteString(" |\n")
	}
	line(rows[0])
	for i, n := range width {
		if i == 0 {
			b.WriteString("|" + strings.Repeat("-", n+2))
		} else {
			b.WriteString("|" + strings.Repeat("-", n+1) + ":")
		}
	}
	b.WriteString("|\n")
	for _, row := range rows[1:] {
		line(row)
	}
}
