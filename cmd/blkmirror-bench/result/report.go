// SPDX-License-Identifier: Apache-2.0

package result

import (
	"encoding/json"
	"io"
)

// Contender is who took part.
type Contender struct {
	Name    string `json:"name"`
	Command string `json:"command"`
	Options string `json:"options,omitempty"`
	Version string `json:"version,omitempty"` // what the program says of itself
}

// Machine is where it was measured.
type Machine struct {
	Kernel     string  `json:"kernel"`
	CPU        string  `json:"cpu"`
	CPUs       int     `json:"cpus"`
	MemoryMiB  int64   `json:"memory_mib"`
	FileSystem string  `json:"file_system"` // of the images that are not said to lie elsewhere
	LoadBefore float64 `json:"load_before"` // average of the last minute, at the start
	LoadAfter  float64 `json:"load_after"`
}

// Report is all of one run of the program.
type Report struct {
	Date        string       `json:"date"` // RFC 3339
	Machine     Machine      `json:"machine"`
	Scale       float64      `json:"scale"`
	Rounds      int          `json:"rounds"`
	Load        string       `json:"load"` // what made the guests' requests
	Ours        string       `json:"ours"`
	Contenders  []Contender  `json:"contenders"`
	Cases       []*Case      `json:"cases"`
	Comparisons []Comparison `json:"comparisons"`
}

// Compare fills in the comparisons of all cases.
func (r *Report) Compare() {
	r.Comparisons = nil
	for _, c := range r.Cases {
		r.Comparisons = append(r.Comparisons, c.Compare(r.Ours)...)
	}
}

// row adds to a row what several runs say, for readers who do not want to compute that.
type row struct {
	*Row
	Summary map[string]Summary `json:"summary,omitempty"`
}

// MarshalJSON writes the case with summaries of its rows.
func (c *Case) MarshalJSON() ([]byte, error) {
	type plain Case // without this method
	rows := make([]row, len(c.Rows))
	for i, r := range c.Rows {
		rows[i] = row{r, map[string]Summary{}}
		for _, m := range c.Metrics {
			if s, ok := r.Summary(m); ok {
				rows[i].Summary[m.Name] = s
			}
		}
	}
	return json.Marshal(struct {
		*plain
		Rows []row `json:"rows"`
	}{(*plain)(c), rows})
}

// WriteJSON writes the report, indented.
func (r *Report) WriteJSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", " ")
	return e.Encode(r)
}
