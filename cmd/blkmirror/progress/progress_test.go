// SPDX-License-Identifier: Apache-2.0

package progress

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/blkmirror/blkmirror/cmd/blkmirror/follow"
	"github.com/blkmirror/blkmirror/qmp/api"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const mib = 1 << 20

var start = time.Unix(1700000000, 0)

// sample is a mirror of 64 MiB, half of which is skipped, that has copied so
// many MiB after so many milliseconds.
func sample(status api.JobStatus, ms int, copied int64) follow.Sample {
	copied *= mib
	zeroed, skipped, dirty := int64(0), int64(32*mib), 32*mib-copied
	return follow.Sample{Time: start.Add(time.Duration(ms) * time.Millisecond), Job: api.JobInfo{
		ID: "m", Type: api.JobTypeMirror, Status: status, CurrentProgress: skipped + copied, TotalProgress: 64 * mib,
		JobWork: api.JobWork{CopiedBytes: &copied, ZeroedBytes: &zeroed, SkippedBytes: &skipped, DirtyBytes: &dirty}}}
}

func TestMeter(t *testing.T) {
	var m Meter
	check := func(s follow.Sample, want Figures) {
		t.Helper()
		if got := m.Add(s); got != want {
			t.Errorf("at %v: %+v, want %+v", s.Time.Sub(start), got, want)
		}
	}
	check(sample("running", 0, 0), Figures{Percent: 50, Rate: -1, Left: -1})
	// What was skipped before is no work: 8 MiB in a second, 24 to go.
	check(sample("running", 1000, 8), Figures{Percent: 62, Rate: 8 * mib, Left: 3 * time.Second})
	check(sample("running", 2000, 16), Figures{Percent: 75, Rate: 8 * mib, Left: 2 * time.Second})
	// Five seconds of standstill later nothing is left of that rate.
	check(sample("running", 7000, 16), Figures{Percent: 75, Rate: 0, Left: -1})
	check(sample("ready", 9000, 32), Figures{Percent: 100, Rate: 16 * mib * 1000 / 7000, Left: 0})
}

func TestMeterTrustsTheDaemon(t *testing.T) {
	var m Meter
	s := sample("running", 0, 0)
	rate, left := int64(7), int64(70)
	s.Job.Rate, s.Job.SecondsLeft = &rate, &left
	if f := m.Add(s); f.Rate != 7 || f.Left != 70*time.Second {
		t.Errorf("%+v", f)
	}
}

// TestMeterWithoutWork is a daemon that only counts progress.
func TestMeterWithoutWork(t *testing.T) {
	var m Meter
	s := sample("running", 0, 0)
	s.Job.JobWork = api.JobWork{}
	m.Add(s)
	s.Time = s.Time.Add(2 * time.Second)
	s.Job.CurrentProgress += 16 * mib
	if f := m.Add(s); f.Rate != 8*mib || f.Left != 2*time.Second {
		t.Errorf("%+v", f)
	}
}

func TestLines(t *testing.T) {
	var out bytes.Buffer
	d := NewLines(&out)
	d.Progressed(sample("created", 0, 0))
	d.Progressed(sample("running", 1, 0)) // a new state shows at once
	for ms := 100; ms < 1000; ms += 100 { // numbers once per second
		d.Progressed(sample("running", ms, 1))
	}
	d.Progressed(sample("running", 1001, 8))
	d.Progressed(sample("paused", 1002, 8))
	d.Progressed(sample("running", 1003, 8))
	d.Progressed(sample("ready", 1004, 32))
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	want := `m: created 50%, 32 MiB of 64 MiB, copied 0 B, zeroed 0 B, skipped 32 MiB
m: running 50%, 32 MiB of 64 MiB, copied 0 B, zeroed 0 B, skipped 32 MiB, 0 B/s, time left unknown
m: running 62%, 40 MiB of 64 MiB, copied 8 MiB, zeroed 0 B, skipped 32 MiB, 8 MiB/s, 3s left
m: paused 62%, 40 MiB of 64 MiB, copied 8 MiB, zeroed 0 B, skipped 32 MiB
m: running 62%, 40 MiB of 64 MiB, copied 8 MiB, zeroed 0 B, skipped 32 MiB, 8 MiB/s, 3s left
m: ready 100%, 64 MiB of 64 MiB, copied 32 MiB, zeroed 0 B, skipped 32 MiB
`
	if out.String() != want {
		t.Errorf("got:\n%swant:\n%s", out.String(), want)
	}
}

func TestFailedRequests(t *testing.T) {
	var out bytes.Buffer
	d := NewLines(&out)
	node, off, length, errno := "copy", int64(4096), int64(512), "No space left on device"
	e := api.BlockJobErrorEvent{Device: "m", Operation: api.IoOperationTypeWrite, Action: api.BlockErrorActionIgnore}
	for i := range 1000 {
		d.RequestFailed(start.Add(time.Duration(i)*time.Millisecond), e)
	}
	e.NodeName, e.Offset, e.Length, e.Errno, e.Action = &node, &off, &length, &errno, api.BlockErrorActionStop
	d.RequestFailed(start.Add(time.Second), e)
	want := `m: a write failed; it is tried again
m: a write failed on node 'copy', 512 bytes at 4096 (No space left on device); the job waits for resume (and 999 others before it)
`
	if out.String() != want {
		t.Errorf("got:\n%swant:\n%s", out.String(), want)
	}
}

func TestJSON(t *testing.T) {
	var out bytes.Buffer
	d := NewJSON(&out)
	d.Progressed(sample("running", 0, 0))
	d.Progressed(sample("running", 500, 4))
	d.Progressed(sample("running", 1000, 8))
	d.RequestFailed(start, api.BlockJobErrorEvent{Device: "m", Operation: api.IoOperationTypeRead, Action: api.BlockErrorActionReport})
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != 3 {
		t.Fatalf("lines: %q", lines)
	}
	var info api.JobInfo
	if err := json.Unmarshal([]byte(lines[1]), &info); err != nil {
		t.Fatal(err)
	}
	if info.ID != "m" || *info.CopiedBytes != 8*mib || *info.Rate != 8*mib || *info.SecondsLeft != 3 {
		t.Errorf("second line: %s", lines[1])
	}
	if strings.Contains(lines[0], "rate") {
		t.Errorf("a rate of one sample: %s", lines[0])
	}
	if !strings.Contains(lines[2], `"event": "BLOCK_JOB_ERROR", "data": {`) {
		t.Errorf("third line: %s", lines[2])
	}
}

func TestBar(t *testing.T) {
	var out bytes.Buffer
	d := NewBar(&out, 120)
	d.Progressed(sample("running", 0, 0))
	d.RequestFailed(start, api.BlockJobErrorEvent{Device: "m", Operation: api.IoOperationTypeRead, Action: api.BlockErrorActionReport})
	d.Progressed(sample("running", 1000, 8))
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"m running    62% [", "=>", "] 40 MiB of 64 MiB",
		"copied 8 MiB, zeroed 0 B, skipped 32 MiB, 8 MiB/s, 3s left", "m: a read failed; the job fails\n"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in %q", want, out.String())
		}
	}
}

// TestBarStaysInOneLine checks a terminal that is narrow.
func TestBarStaysInOneLine(t *testing.T) {
	var out bytes.Buffer
	d := NewBar(&out, 60)
	d.Progressed(sample("running", 0, 0))
	d.Progressed(sample("running", 1000, 8))
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(out.String()) {
		if len(strings.TrimRight(line, "\n")) > 60+len("\x1b[2A\x1b[J") {
			t.Errorf("%d columns: %q", len(line), line)
		}
	}
}

// TestBarThatNeverBegan is one whose job was not found.
func TestBarThatNeverBegan(t *testing.T) {
	var out bytes.Buffer
	if err := NewBar(&out, 80).Close(); err != nil || out.Len() > 0 {
		t.Errorf("%v, %q", err, out.String())
	}
}

type full struct{}

var errFull = errors.New("full")

func (full) Write([]byte) (int, error) { return 0, errFull }

func TestOutputThatFails(t *testing.T) {
	for name, d := range map[string]Display{"lines": NewLines(full{}), "JSON": NewJSON(full{})} {
		d.Progressed(sample("running", 0, 0))
		d.Progressed(sample("ready", 1000, 8))
		if err := d.Close(); !errors.Is(err, errFull) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// A bar has no way to tell, but ends.
	d := NewBar(full{}, 80)
	d.Progressed(sample("running", 0, 0))
	d.Progressed(sample("ready", 1000, 8))
	d.Close()
}
