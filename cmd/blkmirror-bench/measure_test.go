// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/blkmirror/blkmirror/cmd/blkmirror-bench/result"
)

func TestParseFio(t *testing.T) {
	const report = `fio: a warning
{"jobs": [{"jobname": "guest", "error": 0,
  "read": {"total_ios": 0, "iops": 0.0},
  "write": {"total_ios": 3000, "iops": 2000.0, "lat_ns": {"percentile": {"50.000000": 20000, "99.000000": 90000}}}}]}`
	got, err := parseFio(report, true)
	if err != nil {
		t.Fatal(err)
	}
	if got.Requests != 3000 || got.Wall != 1500*time.Millisecond || got.P50 != 20*time.Microsecond || got.P99 != 90*time.Microsecond {
		t.Errorf("%+v", got)
	}
	for name, bad := range map[string]string{"nothing": "", "no JSON": "{x", "no jobs": `{"jobs": []}`, "error": strings.Replace(report, `"error": 0`, `"error": 5`, 1)} {
		if got, err := parseFio(bad, true); err == nil {
			t.Errorf("%s: %+v", name, got)
		}
	}
	if got, err := parseFio(report, false); err == nil {
		t.Errorf("no reads: %+v", got)
	}
}

func TestCountCalls(t *testing.T) {
	const table = `% time     seconds  usecs/call     calls    errors syscall
------ ----------- ----------- --------- --------- ----------------
 60.00    0.000600           3       200        10 futex
 40.00    0.000400          10        46           pread64
------ ----------- ----------- --------- --------- ----------------
100.00    0.001000           4       246        10 total
`
	s := result.Sample{}
	if err := countCalls(bufio.NewScanner(strings.NewReader(table)), s); err != nil || s[result.TracedCalls] != 246 {
		t.Errorf("%v, %v", s, err)
	}
}

func TestKibibytes(t *testing.T) {
	text := []byte("Name:\tx\nVmHWM:\t    1024 kB\nVmRSS:\t 12 kB\n")
	if n, err := kibibytes(text, "VmHWM"); err != nil || n != 1<<20 {
		t.Errorf("%d, %v", n, err)
	}
	if n, err := kibibytes(text, "Vm"); err == nil {
		t.Errorf("%d", n)
	}
}

func TestCPUTime(t *testing.T) {
	before, err := cpuTime(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	for start := time.Now(); ; {
		after, err := cpuTime(os.Getpid())
		if err != nil {
			t.Fatal(err)
		}
		if after > before+time.Millisecond {
			break
		}
		if time.Since(start) > time.Minute {
			t.Fatalf("no processor time was used within a minute: %v, %v", before, after)
		}
	}
}

func TestCompareRaw(t *testing.T) {
	const size = 16 << 20
	folder := t.TempDir()
	a, b := filepath.Join(folder, "a"), filepath.Join(folder, "b")
	for _, path := range []string{a, b} {
		if err := makeThin(t.Context(), path, size, 8); err != nil {
			t.Fatal(err)
		}
	}
	if err := compareRaw(t.Context(), a, b); err != nil {
		t.Fatal(err)
	}
	poke := func(at int64) {
		t.Helper()
		f, err := os.OpenFile(b, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		_, err = f.WriteAt([]byte{1}, at)
		if err := errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
	}
	poke(size - 1) // in a hole of the other
	if err := compareRaw(t.Context(), a, b); !errors.Is(err, errDiffers) {
		t.Errorf("%v", err)
	}
	if err := compareRaw(t.Context(), b, a); !errors.Is(err, errDiffers) {
		t.Errorf("%v", err)
	}
	if err := makeSparse(b, size+512); err != nil {
		t.Fatal(err)
	}
	if err := compareRaw(t.Context(), a, b); !errors.Is(err, errDiffers) {
		t.Errorf("another size: %v", err)
	}
}

// TestOutcomes sends a trial through everything that can become of it.
func TestOutcomes(t *testing.T) {
	s, err := parseFlags([]string{"--daemon", "ours=x", "--daemon", "refuses=x", "--daemon", "flaky=x", "--daemon", "wrong=x", "--rounds", "3"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	b := &bench{settings: s, out: &out, progress: &out, report: &result.Report{Ours: "ours"}}
	var order []string
	runs := map[string]int{}
	if err := b.measure(t.Context(), trial{scenario: "S1", name: "x", metrics: []result.Metric{wall}, verifies: true,
		run: func(_ context.Context, c *contender, s result.Sample) error {
			order = append(order, c.name)
			runs[c.name]++
			s[wall.Name] = float64(runs[c.name])
			switch {
			case c.name == "refuses":
				return refusal{errors.New("no such driver")}
			case c.name == "flaky" && runs[c.name] == 2:
				return errTimeout
			case c.name == "wrong":
				return errDiffers
			}
			return nil
		}}); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]result.Row{
		"ours":    {Status: result.OK, Verified: 3},
		"refuses": {Status: result.NotSupported},
		"flaky":   {Status: result.OK, Verified: 2, Failures: 1},
		"wrong":   {Status: result.Failed, Failures: 1},
	} {
		row := b.report.Cases[0].Row(name)
		if row.Status != want.Status || row.Verified != want.Verified || row.Failures != want.Failures || len(row.Samples) != want.Verified {
			t.Errorf("%s: %+v", name, row)
		}
	}
	if got := strings.Join(order, " "); got != "ours refuses flaky wrong flaky ours flaky ours" {
		t.Errorf("order: %s", got)
	}
	if len(b.failed) != 1 || !strings.Contains(b.failed[0], "wrong") {
		t.Errorf("failed: %q", b.failed)
	}
}

func TestGrowthPlot(t *testing.T) {
	g := growths[0]
	cases := []*result.Case{
		{Scenario: g.id, X: 1, Rows: []*result.Row{{Contender: "a", Samples: []result.Sample{{wall.Name: 1}, {wall.Name: 3}}}, {Contender: "b"}}},
		{Scenario: g.id, X: 10, Rows: []*result.Row{{Contender: "a", Samples: []result.Sample{{wall.Name: 5}}}}},
		{Scenario: "other", X: 100, Rows: []*result.Row{{Contender: "a", Samples: []result.Sample{{wall.Name: 9}}}}},
	}
	p := growthPlot(g, wall, cases)
	if p == nil || len(p.Series) != 2 || len(p.Series[0].Points) != 2 || p.Series[0].Points[0].Y != 2 || p.Series[0].Points[1].X != 10 {
		t.Fatalf("%+v", p)
	}
	if p := growthPlot(g, cpu, cases); p != nil {
		t.Errorf("a plot of nothing: %+v", p)
	}
}
