// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/blkmirror/blkmirror/block/trace"
)

// shown runs the client on a trace.
func shown(t *testing.T, status int, args ...string) (out, said string) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	if got := run(t.Context(), append([]string{"trace"}, args...), nil, &stdout, &stderr, func(string) string { return "" }); got != status {
		t.Fatalf("%v: status %d, %s", args, got, stderr.String())
	}
	return stdout.String(), stderr.String()
}

func TestTrace(t *testing.T) {
	file := t.TempDir() + "/trace"
	r, err := trace.Start(file, trace.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 100 {
		r.Record(trace.Request{Where: trace.Node, Name: "disk", Op: trace.Write, Off: int64(i) << 12, Len: 4096, Took: time.Duration(i+1) * time.Microsecond})
	}
	r.Record(trace.Request{Where: trace.Export, Name: "e", Conn: 3, Op: trace.Read, Len: 512, Failed: true})
	if _, err := r.Stop(); err != nil {
		t.Fatal(err)
	}
	out, said := shown(t, 0, file)
	if lines := strings.Split(strings.TrimSpace(out), "\n"); len(lines) != 101 || said != "" || !strings.Contains(lines[1], "node disk") ||
		!strings.HasSuffix(lines[1], "write    4096+4096") || !strings.Contains(lines[100], "export e/3") || !strings.HasSuffix(lines[100], "failed") {
		t.Errorf("%q, %q", out, said)
	}
	out, _ = shown(t, 0, "--json", file)
	var last traced
	for lines := json.NewDecoder(strings.NewReader(out)); lines.More(); {
		last = traced{}
		if err := lines.Decode(&last); err != nil {
			t.Fatal(err)
		}
	}
	if last.Export != "e" || last.Conn != 3 || last.Op != "read" || !last.Failed || time.Since(last.Began) > time.Hour {
		t.Errorf("%+v", last)
	}
	out, _ = shown(t, 0, "--json", "--summary", file)
	var sums struct {
		Requests []summed
		Complete bool
	}
	if err := json.Unmarshal([]byte(out), &sums); err != nil || len(sums.Requests) != 2 || !sums.Complete {
		t.Fatalf("%v: %s", err, out)
	}
	s := sums.Requests[0]
	if near := func(got int64, want time.Duration) bool { return got >= int64(want) && got <= int64(want+want/slots) }; s.Node != "disk" ||
		s.Requests != 100 || s.Bytes != 409600 || !near(s.P50, 50*time.Microsecond) || !near(s.P99, 99*time.Microsecond) || s.LongestNS != 100_000 {
		t.Errorf("%+v", s)
	}
	if out, _ = shown(t, 0, "--summary", file); !strings.Contains(out, "p99.9") || !strings.Contains(out, "export e") {
		t.Error(out)
	}

	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, text[:len(text)-100], 0o600); err != nil {
		t.Fatal(err)
	}
	if _, said = shown(t, 0, file); !strings.Contains(said, "cut off") {
		t.Error(said)
	}
	if err := os.WriteFile(file, []byte("no trace"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, said = shown(t, 1, file); !strings.Contains(said, "this is no trace") {
		t.Error(said)
	}
}

// Every time is in a slot whose longest time is near.
func TestSlots(t *testing.T) {
	for d := time.Duration(1); d > 0 && d < 1<<61; d += d/7 + 1 {
		top := topOf(slotOf(d))
		if top < d || top-d > d/slots {
			t.Fatalf("%d is in a slot up to %d", d, top)
		}
	}
	if slotOf(1<<63-1) >= 64*slots || slotOf(-1) != 0 {
		t.Error("there is no slot for the longest or the shortest time")
	}
}

func TestPrintable(t *testing.T) {
	for name, want := range map[string]string{"disk": "disk", "Platte ä": "Platte ä", "a\x1b[2J": `"a\x1b[2J"`, "a\nb": `"a\nb"`} {
		if got := printable(name); got != want {
			t.Errorf("%q is shown as %s, want %s", name, got, want)
		}
	}
}
