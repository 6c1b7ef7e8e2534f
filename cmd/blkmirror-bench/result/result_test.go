// SPDX-License-Identifier: Apache-2.0

package result

import (
	"bytes"
	"encoding/json"
	"flag"
	"math"
	"os"
	"path/filepath"
	"testing"
)

var update = flag.Bool("update", false, "write the golden files anew")

func TestMedian(t *testing.T) {
	for _, test := range []struct {
		values []float64
		want   float64
	}{
		{[]float64{3}, 3},
		{[]float64{5, 1}, 3},
		{[]float64{9, 1, 2}, 2},
		{[]float64{4, 1, 3, 2}, 2.5},
	} {
		if got := Median(test.values); got != test.want {
			t.Errorf("Median(%v) = %v, want %v", test.values, got, test.want)
		}
	}
	if !math.IsNaN(Median(nil)) {
		t.Error("the median of nothing is a number")
	}
}

func TestPercentile(t *testing.T) {
	var hundred []float64
	for i := range 100 {
		hundred = append(hundred, float64(i+1))
	}
	for _, test := range []struct {
		values []float64
		p      float64
		want   float64
	}{
		{hundred, 50, 50},
		{hundred, 99, 99},
		{hundred, 100, 100},
		{hundred, 0, 1},
		{hundred[:10], 99, 10},
		{hundred[:1], 50, 1},
	} {
		if got := Percentile(test.values, test.p); got != test.want {
			t.Errorf("Percentile of %d values at %v = %v, want %v", len(test.values), test.p, got, test.want)
		}
	}
}

func TestSummarize(t *testing.T) {
	values := []float64{2, 1, 4}
	for better, want := range map[Direction]Summary{
		Lower:   {Best: 1, Median: 2, Worst: 4, Runs: 3},
		Higher:  {Best: 4, Median: 2, Worst: 1, Runs: 3},
		Neither: {Best: 4, Median: 2, Worst: 1, Runs: 3},
	} {
		if got, ok := Summarize(values, better); !ok || got != want {
			t.Errorf("%s: %+v, want %+v", better, got, want)
		}
	}
	if _, ok := Summarize(nil, Lower); ok {
		t.Error("nothing is summed up")
	}
}

func TestRatio(t *testing.T) {
	if got, ok := Ratio(1, 4); !ok || got != 0.25 {
		t.Errorf("1 / 4 = %v, %v", got, ok)
	}
	for _, bad := range [][2]float64{{1, 0}, {-1, 2}, {math.NaN(), 1}, {1, math.Inf(1)}} {
		if got, ok := Ratio(bad[0], bad[1]); ok {
			t.Errorf("%v / %v = %v", bad[0], bad[1], got)
		}
	}
}

func TestFormat(t *testing.T) {
	for v, want := range map[float64]string{
		0: "0", 12: "12", 0.01234: "0.0123", 0.1234: "0.123", 1.234: "1.23", 12.34: "12.3", 123.4: "123", 12345.6: "12346", 1e7: "10000000",
	} {
		if got := Format(v); got != want {
			t.Errorf("Format(%v) = %s, want %s", v, got, want)
		}
	}
}

// example is a case with one row of every kind.
func example() *Case {
	return &Case{
		Scenario: "S1", Name: "example", Note: "What it is.", Verifies: true,
		Metrics: []Metric{{"wall_s", "wall s", Lower}, {"iops", "IOPS", Higher}, {"target_mib", "target MiB", Neither}},
		Rows: []*Row{
			{Contender: "ours", Status: OK, Verified: 2, Traced: Sample{TracedCalls: 12.5},
				Samples: []Sample{{"wall_s": 0.5, "iops": 3000, "target_mib": 64}, {"wall_s": 0.4, "iops": 2000, "target_mib": 64}}},
			{Contender: "theirs", Status: OK, Note: "timed out", Failures: 1, Verified: 1,
				Samples: []Sample{{"wall_s": 0.8, "iops": 1500}, {"wall_s": 1.2, "iops": 1200}}},
			{Contender: "third", Status: OK, Samples: []Sample{{"wall_s": 0.2, "iops": 4000}}, Verified: 1},
			{Contender: "refuses", Status: NotSupported, Note: "Unknown driver 'qcow2'"},
		},
	}
}

func TestCompare(t *testing.T) {
	found := example().Compare("ours")
	if len(found) != 2 {
		t.Fatalf("%d comparisons: %+v", len(found), found)
	}
	wall, iops := found[0], found[1]
	if wall.Peer != "third" || wall.Ratio != 2 || wall.Medians != 2.25 || wall.Ahead {
		t.Errorf("wall: %+v", wall)
	}
	if iops.Peer != "third" || iops.Ratio != 0.75 || iops.Ahead {
		t.Errorf("iops: %+v", iops)
	}
	c := example()
	c.Rows = c.Rows[:2]
	for _, f := range c.Compare("ours") {
		if !f.Ahead || f.Peer != "theirs" {
			t.Errorf("%s: %+v", f.Metric, f)
		}
	}
	if found := c.Compare("nobody"); found != nil {
		t.Errorf("nobody: %+v", found)
	}
}

// TestTables compares with testdata/tables.md; -update writes it anew.
func TestTables(t *testing.T) {
	var got bytes.Buffer
	c := example()
	if err := WriteCase(&got, c, "ours"); err != nil {
		t.Fatal(err)
	}
	if err := WriteComparisons(&got, c.Compare("ours")); err != nil {
		t.Fatal(err)
	}
	golden(t, "tables.md", got.Bytes())
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("not what %s has:\n%s", path, got)
	}
}

func TestJSON(t *testing.T) {
	report := &Report{Ours: "ours", Cases: []*Case{example()}}
	report.Compare()
	var b bytes.Buffer
	if err := report.WriteJSON(&b); err != nil {
		t.Fatal(err)
	}
	var back struct {
		Comparisons []Comparison
		Cases       []struct {
			Scenario string
			Metrics  []Metric
			Rows     []struct {
				Contender string
				Status    Status
				Samples   []Sample
				Summary   map[string]Summary
			}
		}
	}
	if err := json.Unmarshal(b.Bytes(), &back); err != nil {
		t.Fatal(err)
	}
	if len(back.Cases) != 1 || len(back.Cases[0].Rows) != 4 || len(back.Cases[0].Metrics) != 3 || len(back.Comparisons) != 2 {
		t.Fatalf("%s", b.Bytes())
	}
	if ours := back.Cases[0].Rows[0]; ours.Contender != "ours" || len(ours.Samples) != 2 || ours.Summary["wall_s"].Best != 0.4 {
		t.Errorf("%+v", ours)
	}
}
