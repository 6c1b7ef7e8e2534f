// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"strings"
	"sync"
	"testing"

	"github.com/blkmirror/blkmirror/cmd/blkmirror/internal/fakedaemon"
	"github.com/blkmirror/blkmirror/qmp"
)

// fakeMirror is a daemon with one mirror. Each query-jobs takes it a step on.
type fakeMirror struct {
	id      string
	steps   []step
	refusal error  // of any command but queries
	checked string // what query-jobs says before the mirror starts, "" if nobody asks

	started bool // guarded by mu

	mu struct {
		sync.Mutex
		executed []string // commands with arguments, without queries
		queries  int
	}
}

// checkedNodes are two disks that fit.
const checkedNodes = `[
	{"file": "", "node-name": "a", "ro": false, "drv": "null-co", "backing_file_depth": 0, "active": true, "children": [],
	 "encrypted": false, "detect_zeroes": "off", "bps": 0, "bps_rd": 0, "bps_wr": 0, "iops": 0, "iops_rd": 0, "iops_wr": 0,
	 "write_threshold": 0, "cache": {"writeback": true, "direct": false, "no-flush": false},
	 "image": {"filename": "null-co://", "format": "null-co", "virtual-size": 10485760}},
	{"file": "", "node-name": "#block1", "ro": false, "drv": "null-co", "backing_file_depth": 0, "active": true, "children": [],
	 "encrypted": false, "detect_zeroes": "off", "bps": 0, "bps_rd": 0, "bps_wr": 0, "iops": 0, "iops_rd": 0, "iops_wr": 0,
	 "write_threshold": 0, "cache": {"writeback": true, "direct": false, "no-flush": false},
	 "image": {"filename": "null-co://", "format": "null-co", "virtual-size": 10485760}},
	{"file": "", "node-name": "b", "ro": false, "drv": "null-co", "backing_file_depth": 0, "active": true, "children": [],
	 "encrypted": false, "detect_zeroes": "off", "bps": 0, "bps_rd": 0, "bps_wr": 0, "iops": 0, "iops_rd": 0, "iops_wr": 0,
	 "write_threshold": 0, "cache": {"writeback": true, "direct": false, "no-flush": false},
	 "image": {"filename": "null-co://", "format": "null-co", "virtual-size": 10485760}}]`

// step is a number of events, and then what query-jobs says: the status, or
// "" when the job is gone.
type step struct {
	events func(c *fakedaemon.Conn)
	status string
	copied int
}

func (f *fakeMirror) script(c *fakedaemon.Conn, command string, arguments *qmp.Object) (any, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch command {
	case "query-named-block-nodes":
		return parseJSON(checkedNodes)
	case "query-block-exports":
		return []any{}, nil
	}
	if command == "query-jobs" && !f.started && len(f.checked) > 0 {
		f.started = true
		return parseJSON(f.checked)
	}
	if command == "query-jobs" {
		s := f.steps[min(f.mu.queries, len(f.steps)-1)]
		f.mu.queries++
		if s.events != nil {
			s.events(c)
		}
		if s.status == "" {
			return []any{}, nil
		}
		return []any{qmp.NewObject(
			qmp.Member{Name: "id", Value: f.id}, qmp.Member{Name: "type", Value: "mirror"}, qmp.Member{Name: "status", Value: s.status},
			qmp.Member{Name: "current-progress", Value: s.copied << 20}, qmp.Member{Name: "total-progress", Value: 10 << 20},
			qmp.Member{Name: "copied-bytes", Value: s.copied << 20}, qmp.Member{Name: "zeroed-bytes", Value: 0},
			qmp.Member{Name: "skipped-bytes", Value: 0}, qmp.Member{Name: "dirty-bytes", Value: (10 - s.copied) << 20})}, nil
	}
	f.mu.executed = append(f.mu.executed, command+" "+string(qmp.Encode(arguments)))
	return nil, f.refusal
}

func (f *fakeMirror) executed() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return strings.Join(f.mu.executed, "; ")
}

// events of a mirror's end.
func ends(id, event, more string, statuses ...string) func(*fakedaemon.Conn) {
	return func(c *fakedaemon.Conn) {
		c.Status(id, statuses...)
		c.Event(event, `{"type": "mirror", "device": "`+id+`", "len": 10485760, "offset": 10485760, "speed": 0`+more+`}`)
		c.Status(id, "concluded", "null")
	}
}

const (
	lineRunning = "m: running 20%, 2 MiB of 10 MiB, copied 2 MiB, zeroed 0 B, skipped 0 B, time left unknown\n"
	lineReady   = "m: ready 100%, 10 MiB of 10 MiB, copied 10 MiB, zeroed 0 B, skipped 0 B\n"
	lineGone    = " 100%, 10 MiB of 10 MiB, copied 10 MiB, zeroed 0 B, skipped 0 B\n"
	startedM    = "job 'm' started: a to b\n"
)

func TestMirror(t *testing.T) {
	completed := ends("m", "BLOCK_JOB_COMPLETED", "", "waiting", "pending")
	failed := ends("m", "BLOCK_JOB_COMPLETED", `, "error": "No space left on device"`, "aborting")
	cancelled := ends("m", "BLOCK_JOB_CANCELLED", "", "aborting")
	for name, test := range map[string]struct {
		args           string
		steps          []step
		refusal        error
		status         int
		stdout, stderr string
		executed       string
	}{
		"started only": {args: "mirror start a b", stdout: "job 'mirror-a' started: a to b\n",
			executed: `blockdev-mirror {"job-id": "mirror-a", "device": "a", "target": "b", "sync": "full"}`},
		"JSON": {args: "mirror start #block1 b --json", stdout: `{"job": "mirror-block1"}` + "\n",
			executed: `blockdev-mirror {"job-id": "mirror-block1", "device": "#block1", "target": "b", "sync": "full"}`},
		"all flags": {args: "mirror start a b --job m --sync top --copy-mode write-blocking --granularity 4K --buf-size 1MiB --speed 1.5G " +
			"--on-source-error stop --on-target-error enospc --filter-node-name f --replaces a --target-is-zero --auto-finalize=false --auto-dismiss=off",
			stdout: startedM,
			executed: `blockdev-mirror {"job-id": "m", "device": "a", "target": "b", "replaces": "a", "sync": "top", "speed": 1610612736, ` +
				`"granularity": 4096, "buf-size": 1048576, "on-source-error": "stop", "on-target-error": "enospc", "filter-node-name": "f", ` +
				`"copy-mode": "write-blocking", "auto-finalize": false, "auto-dismiss": false, "target-is-zero": true}`},
		"refused": {args: "mirror start a b", refusal: qmp.Errorf("Node 'a' is busy"), status: exitFailed, stderr: "blkmirror: Node 'a' is busy\n"},
		"wait": {args: "mirror start a b --job m --wait", steps: []step{{status: "running", copied: 2}, {status: "ready", copied: 10}},
			stdout: startedM + lineRunning + lineReady + "job 'm' is ready: the target is in step (copied 10 MiB, zeroed 0 B, skipped 0 B)\n"},
		"complete": {args: "mirror start a b --job m --complete", steps: []step{{status: "ready", copied: 10}, {events: completed}},
			stdout: startedM + lineReady + "m: waiting" + lineGone + "m: pending" + lineGone + "m: concluded" + lineGone +
				"job 'm' is completed (copied 10 MiB, zeroed 0 B, skipped 0 B)\n"},
		"bitmap": {args: "mirror start a b --bitmap d --copy-mode auto", stdout: "job 'mirror-a' started: a to b\n",
			executed: `blockdev-mirror {"job-id": "mirror-a", "device": "a", "target": "b", "sync": "bitmap", "copy-mode": "auto", "bitmap": "d"}`},
		"checked": {args: "mirror start a c", status: exitChecks, stderr: "blkmirror: mirror start: 1 problem\n  nodes: there is no node 'c'"},
		"not checked": {args: "mirror start a c --force", stdout: "job 'mirror-a' started: a to c\n",
			executed: `blockdev-mirror {"job-id": "mirror-a", "device": "a", "target": "c", "sync": "full"}`},
		"latency": {args: "mirror latency m 5ms", stdout: "job 'm' gives way while guests wait longer than 5ms\n",
			executed: `block-job-change {"id": "m", "type": "mirror", "max-guest-latency": 5000000}`},
		"no latency": {args: "mirror latency m 0", stdout: "job 'm' does not give way to guests\n",
			executed: `block-job-change {"id": "m", "type": "mirror", "max-guest-latency": 0}`},
		"start with latency": {args: "mirror start a b --force --max-guest-latency 2ms", stdout: "job 'mirror-a' started: a to b\n",
			executed: `blockdev-mirror {"job-id": "mirror-a", "device": "a", "target": "b", "sync": "full", "max-guest-latency": 2000000}`},
		"mode": {args: "mirror mode m write-blocking", stdout: "job 'm' copies in mode write-blocking\n",
			executed: `block-job-change {"id": "m", "type": "mirror", "copy-mode": "write-blocking"}`},
		"fails": {args: "mirror start a b --job m --wait", steps: []step{{status: "running", copied: 2}, {events: failed}},
			status: exitFailed, stderr: "job 'm' failed: No space left on device"},
		"is cancelled": {args: "mirror start a b --job m --wait", steps: []step{{status: "running", copied: 2}, {events: cancelled}},
			status: exitCancelled, stderr: "job 'm' was cancelled"},
		"watch": {args: "mirror watch m", steps: []step{{status: "ready", copied: 10}, {events: completed}},
			stdout: lineReady + "m: waiting" + lineGone + "m: pending" + lineGone + "m: concluded" + lineGone +
				"job 'm' is completed (copied 10 MiB, zeroed 0 B, skipped 0 B)\n"},
		"watch, fails": {args: "mirror watch m", steps: []step{{status: "running", copied: 2}, {events: failed}},
			status: exitFailed, stderr: "No space left on device"},
		"watch, nothing": {args: "mirror watch m", steps: []step{{}}, status: exitFailed, stderr: "job 'm': the daemon has no such job"},
		"watch, JSON": {args: "mirror watch m --json", steps: []step{{status: "ready", copied: 10}, {events: cancelled}}, status: exitCancelled,
			stderr: `{"error": {"desc": "job 'm' was cancelled", "exit-status": 4}}`},
		"complete, refused": {args: "mirror complete m", refusal: qmp.Errorf("Job not found"), status: exitFailed,
			stderr: "blkmirror: job 'm': Job not found\n"},
		"complete, no wait": {args: "mirror complete m", stdout: "job 'm' is about to complete\n", executed: `job-complete {"id": "m"}`},
		"complete, wait": {args: "mirror complete m --wait", steps: []step{{status: "ready", copied: 10}, {events: completed}}, executed: `job-complete {"id": "m"}`,
			stdout: "m: waiting" + lineGone + "m: pending" + lineGone + "m: concluded" + lineGone + "job 'm' is completed (copied 10 MiB, zeroed 0 B, skipped 0 B)\n"},
		"complete, but cancelled": {args: "mirror complete m --wait", steps: []step{{status: "ready"}, {events: cancelled}}, status: exitCancelled, stderr: "was cancelled"},
		"cancel":                  {args: "mirror cancel m", stdout: "job 'm' is about to end\n", executed: `block-job-cancel {"device": "m"}`},
		"cancel, force": {args: "mirror cancel m --force --wait", steps: []step{{status: "paused", copied: 3}, {events: cancelled}}, executed: `job-cancel {"id": "m"}`,
			stdout: "m: aborting 100%, 10 MiB of 10 MiB, copied 3 MiB, zeroed 0 B, skipped 0 B\n" +
				"m: concluded 100%, 10 MiB of 10 MiB, copied 3 MiB, zeroed 0 B, skipped 0 B\njob 'm' is cancelled\n"},
		"cancel, but failed": {args: "mirror cancel m --wait", steps: []step{{status: "ready"}, {events: failed}}, status: exitFailed, stderr: "No space left"},
		"pause":              {args: "job pause m", stdout: "job 'm' is paused\n", executed: `job-pause {"id": "m"}`},
		"resume":             {args: "job resume m", stdout: "job 'm' is resumed\n", executed: `job-resume {"id": "m"}`},
		"finalize":           {args: "job finalize m", stdout: "job 'm' is finalized\n", executed: `job-finalize {"id": "m"}`},
		"dismiss":            {args: "job dismiss m --json", stdout: `{"job": "m"}` + "\n", executed: `job-dismiss {"id": "m"}`},
		"speed":              {args: "job speed m 1.5M", stdout: "job 'm' is limited to 1.5 MiB/s\n", executed: `block-job-set-speed {"device": "m", "speed": 1572864}`},
		"no speed":           {args: "job speed m 0", stdout: "job 'm' has no limit\n", executed: `block-job-set-speed {"device": "m", "speed": 0}`},
		"refusal that names the job": {args: "job pause m", refusal: qmp.Errorf("Job 'm' is already paused"), status: exitFailed,
			stderr: "blkmirror: Job 'm' is already paused\n"},
	} {
		t.Run(name, func(t *testing.T) {
			f := &fakeMirror{id: "m", steps: test.steps, refusal: test.refusal}
			if strings.HasPrefix(test.args, "mirror start") {
				f.checked = "[]"
			}
			r := try(t.Context(), daemon(t, f.script), strings.Fields(test.args)...)
			stdout := test.stdout
			if stdout == "" && test.status != exitOK {
				stdout = r.stdout // what came before a failure is told elsewhere
			}
			r.expect(t, test.status, stdout, test.stderr)
			if test.executed != "" && f.executed() != test.executed {
				t.Errorf("executed:\n%s\nwant:\n%s", f.executed(), test.executed)
			}
		})
	}
}

func TestWatchJSONLines(t *testing.T) {
	f := &fakeMirror{id: "m", steps: []step{{status: "ready", copied: 10}, {events: ends("m", "BLOCK_JOB_COMPLETED", "")}}}
	r := try(t.Context(), daemon(t, f.script), "mirror", "watch", "m", "--json")
	lines := strings.Split(strings.TrimSpace(r.stdout), "\n")
	if r.status != exitOK || len(lines) != 3 {
		t.Fatalf("status %d, %d lines: %s", r.status, len(lines), r.stdout)
	}
	for i, want := range []string{`"status": "ready"`, `"status": "concluded"`, `{"job": "m", "outcome": "completed", "last": {"copied-bytes": 10485760`} {
		if !strings.Contains(lines[i], want) {
			t.Errorf("line %d: %s, want %s", i, lines[i], want)
		}
	}
}

// TestInterrupt is a SIGINT while a job is waited for: it goes on, and the
// user is told so.
func TestInterrupt(t *testing.T) {
	for _, args := range []string{"mirror start a b --job m --wait", "mirror watch m", "mirror complete m --wait"} {
		ctx, cancel := context.WithCancelCause(t.Context())
		f := &fakeMirror{id: "m", steps: []step{{status: "running", copied: 2}, {status: "running", copied: 3,
			events: func(*fakedaemon.Conn) { cancel(errInterrupted) }}}}
		if strings.HasPrefix(args, "mirror start") {
			f.checked = "[]"
		}
		socket := daemon(t, f.script)
		r := try(ctx, socket, strings.Fields(args)...)
		r.expect(t, exitInterrupted, r.stdout, "job 'm'")
		if !strings.Contains(r.stderr, "interrupted: the job goes on; see it with: blkmirror -s "+socket+" job watch m") {
			t.Errorf("%s: stderr %q", args, r.stderr)
		}
		if strings.Contains(f.executed(), "cancel") {
			t.Errorf("%s: executed %s", args, f.executed())
		}
	}
}

func TestTimeout(t *testing.T) {
	f := &fakeMirror{id: "m", steps: []step{{status: "running", copied: 2}}}
	r := try(t.Context(), daemon(t, f.script), "mirror", "watch", "m", "--timeout", "50ms")
	r.expect(t, exitTimeout, lineRunning, "not done within the timeout of 50ms: the job goes on")
}

func TestEvents(t *testing.T) {
	script := func(c *fakedaemon.Conn, command string, _ *qmp.Object) (any, error) { return nil, errHangUp }
	// The daemon sends events as soon as it is connected to, and leaves when
	// it is asked anything: that ends the stream, too.
	socket := daemonWithEvents(t, script, func(c *fakedaemon.Conn) {
		c.Status("m", "ready")
		c.Event("BLOCK_JOB_READY", `{"type": "mirror", "device": "m", "len": 10, "text": "a b", "none": "", "o": {"p": [1]}}`)
	})
	r := try(t.Context(), socket, "events", "BLOCK_JOB_READY", "--follow=false", "--json")
	r.expect(t, exitOK, `{"timestamp": {"seconds": 1700000000, "microseconds": 123456}, "event": "BLOCK_JOB_READY", "data": `+
		`{"type": "mirror", "device": "m", "len": 10, "text": "a b", "none": "", "o": {"p": [1]}}}`+"\n", "")

	ctx, cancel := context.WithCancelCause(t.Context())
	var out strings.Builder
	c := &cli{socket: socket, patience: defaultPatience, stdout: writerFunc(func(text []byte) (int, error) {
		out.Write(text)
		if strings.Count(out.String(), "\n") == 2 {
			cancel(errInterrupted)
		}
		return len(text), nil
	})}
	command := c.eventsCommand()
	command.SetArgs(nil)
	if err := command.ExecuteContext(ctx); err != nil {
		t.Errorf("interrupted: %v", err)
	}
	lines := strings.Split(out.String(), "\n")
	for i, want := range []string{`.123456 JOB_STATUS_CHANGE id=m status=ready`,
		`.123456 BLOCK_JOB_READY type=mirror device=m len=10 text="a b" none="" o={"p": [1]}`} {
		if !strings.HasSuffix(lines[i], want) {
			t.Errorf("line %d: %q, want %q", i, lines[i], want)
		}
	}
}

func TestEventsEndWithTheDaemon(t *testing.T) {
	script := func(c *fakedaemon.Conn, command string, _ *qmp.Object) (any, error) { return nil, errHangUp }
	socket := daemonWithEvents(t, script, func(c *fakedaemon.Conn) { c.Close() })
	try(t.Context(), socket, "events").expect(t, exitNoConnection, "", "no connection to the daemon at '"+socket+"'")
}
