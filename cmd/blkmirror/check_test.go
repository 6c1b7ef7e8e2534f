// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/blkmirror/blkmirror/qmp"
	"github.com/blkmirror/blkmirror/qmp/api"
)

// queries is an executor that answers queries from a table.
type queries map[string]string

func (q queries) Execute(_ context.Context, command string, _, result any) error {
	text, ok := q[command]
	if !ok {
		return qmp.ErrCommandNotFound(command)
	}
	return json.Unmarshal([]byte(text), result)
}

// node is what a daemon says of one: "NAME DRIVER SIZE [FILE=…] [ROLE:CHILD…] [ro] [align=N] [has=N] [bitmap=N]".
func node(text string) string {
	words := strings.Fields(text)
	file, ro, align, has, bitmaps := "", "false", "", "", ""
	var children []string
	for _, w := range words[3:] {
		name, value, _ := strings.Cut(w, "=")
		role, child, isChild := strings.Cut(w, ":")
		switch {
		case name == "FILE":
			file = value
		case name == "ro":
			ro = "true"
		case name == "align":
			align = `, "limits": {"request-alignment": ` + value + `, "max-iov": 1, "min-mem-alignment": 1, "opt-mem-alignment": 1}`
		case name == "has":
			has = `, "actual-size": ` + value
		case name == "bitmap":
			bitmaps = `, "dirty-bitmaps": [{"name": "b", "count": ` + value + `, "granularity": 65536, "recording": true, "busy": false, "persistent": false}]`
		case isChild:
			children = append(children, `{"child": "`+role+`", "node-name": "`+child+`"}`)
		}
	}
	return `{"file": "` + file + `", "node-name": "` + words[0] + `", "ro": ` + ro + `, "drv": "` + words[1] + `", "backing_file_depth": 0,
		"active": true, "children": [` + strings.Join(children, ", ") + `], "encrypted": false, "detect_zeroes": "off", "bps": 0, "bps_rd": 0,
		"bps_wr": 0, "iops": 0, "iops_rd": 0, "iops_wr": 0, "write_threshold": 0, "cache": {"writeback": true, "direct": false, "no-flush": false},
		"image": {"filename": "` + file + `", "format": "` + words[1] + `", "virtual-size": ` + words[2] + align + has + `}` + bitmaps + `}`
}

func nodes(list ...string) string {
	var objects []string
	for _, text := range list {
		objects = append(objects, node(text))
	}
	return "[" + strings.Join(objects, ", ") + "]"
}

func TestCheckMirror(t *testing.T) {
	folder := t.TempDir()
	x, y := filepath.Join(folder, "x"), filepath.Join(folder, "y")
	for _, path := range []string{x, y} {
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	link := filepath.Join(folder, "link")
	if err := os.Symlink(x, link); err != nil {
		t.Fatal(err)
	}
	here := host{true, os.Getpid()}
	disks := []string{"s raw 1048576 file:sf", "sf file 1048576 has=4096 FILE=" + x, "t raw 1048576 file:tf", "tf file 1048576 has=0 FILE=" + y}
	for name, test := range map[string]struct {
		nodes     []string
		host      host
		exports   string
		jobs      string
		arguments api.BlockdevMirrorArguments
		want      string // all that is not ok
	}{
		"fits":       {nodes: disks, host: here},
		"no nodes":   {nodes: disks[1:2], host: here, want: "problem nodes: there is no node 's' and no node 't'; see blkmirror nodes"},
		"another":    {nodes: disks, host: host{}, want: "unknown space: the daemon may run on another host\nunknown locks: 's': which process the daemon is cannot be told from here\nunknown locks: 't': which process the daemon is cannot be told from here"},
		"job":        {nodes: disks, host: here, jobs: `[{"id": "j", "type": "mirror", "status": "ready", "current-progress": 1, "total-progress": 1}]`, want: "problem job: there is a job 'j' already, which is ready: choose another one with --job"},
		"exported":   {nodes: disks, host: here, exports: `[{"id": "e", "type": "nbd", "node-name": "t", "shutting-down": false}, {"id": "f", "type": "nbd", "node-name": "s", "shutting-down": false}]`, want: "problem target: export 'e' serves 't': remove it with blkmirror export remove e"},
		"stacked":    {nodes: append([]string{"u throttle 1048576 file:s", "v qcow2 1048576 backing:t"}, disks...), host: here, want: "problem source: node 'u' stands on 's': mirror that one\nproblem target: node 'v' stands on 't'"},
		"mirrored":   {nodes: append([]string{"#block9 mirror_top 1048576 backing:s"}, disks...), host: here, want: "problem source: a job works on 's' already (its filter is '#block9')"},
		"everything": {nodes: []string{"s raw 1048577 file:sf", "sf file 1048576 has=1152921504606846976 FILE=" + x, "t raw 1048576 ro align=4096 file:tf", "tf file 1048576 FILE=" + link}, host: here, want: "problem target: 't' is read-only\nproblem same disk: both are in the file '" + x + "'\nproblem size: 's' has 1048577 bytes and 't' 1048576: make them equal, for instance with blkmirror qmp block_resize node-name=t size=1048577\nwarning alignment: 't' takes requests in multiples of 4 KiB, 's' of 1 B: guests' smaller writes become slower"},
		"itself":     {nodes: disks, host: here, arguments: api.BlockdevMirrorArguments{Target: "s"}, want: "problem same disk: source and target are the same node"},
		"one file":   {nodes: []string{disks[0], disks[1], "t raw 1048576 file:sf"}, host: here, want: "problem same disk: both stand on node 'sf'"},
		"one server": {nodes: []string{"s nbd 1048576 FILE=nbd://h/e", "t nbd 1048576 FILE=nbd://h/e"}, host: here, want: "problem same disk: both are 'nbd://h/e'\nunknown space: how much 's' has is not known"},
		"alignment":  {nodes: []string{disks[0], disks[1], "t raw 1048576 align=4096 file:tf", "tf file 1048576 has=0 align=4096 FILE=" + y}, host: here, arguments: api.BlockdevMirrorArguments{Granularity: ptr(uint32(512))}, want: "warning alignment: 't' takes requests in multiples of 4 KiB: with --granularity 512 B smaller ones read and write more than they must"},
		"odd size":   {nodes: []string{"s raw 1000 file:sf", disks[1], "t raw 1000 align=512 file:tf", disks[3]}, host: here, want: "problem alignment: 't' takes requests in multiples of 512 B, and its size is none"},
		"space": {nodes: []string{"s raw 4611686018427387904 file:sf", "sf file 4611686018427387904 has=2305843009213693952 FILE=" + x,
			"t raw 4611686018427387904 file:tf", "tf file 1048576 has=0 FILE=" + y}, host: here, want: "problem space: 't' may need 2 EiB more, and its file system has FREE"},
		"space, top": {nodes: []string{"s qcow2 4611686018427387904 file:sf backing:b", disks[1], "b raw 4611686018427387904 has=2305843009213693952 FILE=/b",
			"t raw 4611686018427387904 file:tf", disks[3]}, host: here, arguments: api.BlockdevMirrorArguments{Sync: api.MirrorSyncModeTop}},
		"space, bitmap": {nodes: []string{"s raw 4611686018427387904 bitmap=65536 file:sf", "sf file 1 has=2305843009213693952 FILE=" + x,
			"t raw 4611686018427387904 file:tf", disks[3]}, host: here, arguments: api.BlockdevMirrorArguments{Sync: api.MirrorSyncModeBitmap, Bitmap: ptr("b")}},
	} {
		t.Run(name, func(t *testing.T) {
			a := test.arguments
			a.Device, a.JobID, a.Sync = "s", ptr("j"), api.MirrorSyncMode(otherwise(string(a.Sync), "full"))
			a.Target = otherwise(a.Target, "t")
			found, err := checkMirror(t.Context(), queries{"query-named-block-nodes": nodes(test.nodes...),
				"query-block-exports": otherwise(test.exports, "[]"), "query-jobs": otherwise(test.jobs, "[]")}, test.host, &a)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, c := range found {
				if c.state != checkOK {
					got = append(got, fmt.Sprintf("%s %s: %s", c.state, c.name, c.detail))
				}
			}
			text := strings.Join(got, "\n")
			if want, _, free := strings.Cut(test.want, "FREE"); text != test.want && !(free && strings.HasPrefix(text, want)) {
				t.Errorf("got:\n%s\nwant:\n%s", text, test.want)
			}
		})
	}
}

func otherwise(text, instead string) string {
	if text == "" {
		return instead
	}
	return text
}

// TestExplain has a job in every state.
func TestExplain(t *testing.T) {
	const mib = 1 << 20
	mirror := func(status string, dirty, copied int64) api.JobInfo {
		return api.JobInfo{ID: "m", Type: api.JobTypeMirror, Status: api.JobStatus(status), CurrentProgress: copied, TotalProgress: copied + dirty,
			JobWork: api.JobWork{DirtyBytes: &dirty, CopiedBytes: &copied}}
	}
	block := func(speed int64, io string, synced bool) *api.BlockJobInfo {
		return &api.BlockJobInfo{Type: api.JobTypeMirror, Device: "m", Speed: speed, IOStatus: api.BlockDeviceIoStatus(io),
			Mirror: &api.BlockJobInfoMirror{ActivelySynced: synced}}
	}
	slow := mirror("ready", 5*mib, 0)
	slow.GuestWriteDelayNS = ptr(int64(1500000))
	braked := mirror("running", 80*mib, 20*mib)
	braked.RateLimit, braked.GuestLatencyNS, braked.MaxGuestLatency = ptr(int64(10*mib)), ptr(int64(3000000)), ptr(int64(2000000))
	failed := mirror("concluded", 0, 0)
	failed.Error = ptr("No space left on device")
	for name, test := range map[string]struct {
		view jobView
		want string
	}{
		"copies": {jobView{now: mirror("running", 80*mib, 20*mib), before: mirror("running", 90*mib, 10*mib), block: block(0, "ok", false)},
			"80 MiB are left. It copies 10 MiB/s and is done in about 8s."},
		"is limited": {jobView{now: mirror("running", 80*mib, 20*mib), before: mirror("running", 90*mib, 10*mib), block: block(10*mib, "ok", false)},
			"80 MiB are left. It copies 10 MiB/s and is done in about 8s. Its limit of 10 MiB/s holds it back. [blkmirror job speed m 0]"},
		"does not converge": {jobView{now: mirror("running", 95*mib, 20*mib), before: mirror("running", 90*mib, 10*mib), block: block(0, "ok", false)},
			"STUCK 95 MiB are left. It copies 10 MiB/s and does not get done: guests write as fast, and what is left grew by 5 MiB in 1s. [blkmirror mirror mode m write-blocking]"},
		"stands still": {jobView{now: mirror("running", 90*mib, 10*mib), before: mirror("running", 90*mib, 10*mib), block: block(0, "ok", false)},
			"STUCK 90 MiB are left. Nothing was copied in the last 1s: the storage of source or target does not answer or is very slow, or its requests fail and are tried again, as with on-target-error=ignore. " +
				"[blkmirror doctor] [blkmirror events BLOCK_JOB_ERROR BLOCK_NODE_CONNECTION]"},
		"gives way": {jobView{now: braked, before: mirror("running", 90*mib, 10*mib), block: block(0, "ok", false)},
			"80 MiB are left. It copies 10 MiB/s and is done in about 8s. It gives way to guests, who wait up to 3ms for the source and shall not wait longer than 2ms: " +
				"10 MiB/s at most for now. [blkmirror mirror latency m 0]"},
		"is nearly ready": {jobView{now: mirror("running", 0, 10*mib), before: mirror("running", 0, 10*mib)},
			"0 B are left. It flushes the target and will be ready in a moment."},
		"is paused": {jobView{now: mirror("paused", mib, 0), block: block(0, "ok", false)},
			"STUCK 1 MiB are left. An operator paused it. [blkmirror job resume m] [blkmirror job cancel m --force]"},
		"has no space": {jobView{now: mirror("paused", mib, 0), block: block(0, "nospace", false)},
			"STUCK 1 MiB are left. It stopped because there is no space left, most likely on the target. [blkmirror doctor] [blkmirror job resume m] [blkmirror job cancel m --force]"},
		"had an error": {jobView{now: mirror("standby", 0, 0), block: block(0, "failed", false)},
			"STUCK It stopped because a request failed; BLOCK_JOB_ERROR told which, and the daemon's log may. [blkmirror job resume m] [blkmirror job cancel m --force]"},
		"is synced": {jobView{now: mirror("ready", 0, 0), block: block(0, "ok", true)},
			"STUCK Source and target are equal, and every write goes to both. It waits for an operator: nothing ends it by itself. [blkmirror mirror complete m] [blkmirror mirror cancel m]"},
		"falls behind": {jobView{now: slow, before: mirror("ready", mib, 0), block: block(0, "ok", false)},
			"STUCK The target is 5 MiB behind; writes reach it some time after the guest was answered. Guests write faster than it follows. It can be completed all the same; " +
				"the last part then holds guests' writes up. Each write of a guest takes 1.5ms longer because of it. It waits for an operator: nothing ends it by itself. " +
				"[blkmirror mirror mode m write-blocking] [blkmirror mirror complete m] [blkmirror mirror cancel m]"},
		"is pending": {jobView{now: mirror("pending", 0, 0)},
			"STUCK Its work is done; it was started with auto-finalize off and waits for the word to end. [blkmirror job finalize m] [blkmirror job cancel m --force]"},
		"has failed": {jobView{now: failed},
			"STUCK It failed: No space left on device. It stays in the list until it is dismissed. [blkmirror job dismiss m]"},
		"cleans up": {jobView{now: mirror("aborting", 0, 0)}, "It failed or was cancelled, and cleans up."},
		"waits":     {jobView{now: mirror("waiting", 0, 0)}, "STUCK Its work is done; it waits for the other jobs of its transaction."},
		"is new":    {jobView{now: mirror("created", 0, 0)}, "It is made, and has not begun."},
		"does not tell": {jobView{now: api.JobInfo{ID: "c", Type: api.JobTypeCommit, Status: api.JobStatusRunning}},
			"It works; how far it is it does not tell."},
	} {
		t.Run(name, func(t *testing.T) {
			if test.view.before.ID != "" {
				test.view.between = 1e9
			}
			e := test.view.explain()
			words := e.facts
			if e.stuck {
				words = append([]string{"STUCK"}, words...)
			}
			for _, h := range e.help {
				words = append(words, "["+h.command+"]")
			}
			if got := strings.Join(words, " "); got != test.want {
				t.Errorf("got:\n%s\nwant:\n%s", got, test.want)
			}
		})
	}
}

// TestDoctorWithoutDaemon is about the way to a daemon, and about images that none has.
func TestDoctorWithoutDaemon(t *testing.T) {
	folder := shortFolder(t)
	file := filepath.Join(folder, "x.img")
	if err := os.WriteFile(file, []byte("QFI\xfb"), 0o600); err != nil {
		t.Fatal(err)
	}
	named := filepath.Join(folder, "y.qcow2")
	if err := os.WriteFile(named, []byte("none"), 0o600); err != nil {
		t.Fatal(err)
	}
	gone := daemon(t, answers{}.script)
	for args, want := range map[string]string{
		"-s /nonexistent/q doctor":              "problem '/nonexistent/q' is not there",
		"-s " + file + " doctor":                "problem '" + file + "' is no socket",
		"doctor " + folder:                      "problem it is neither a file nor a block device",
		"doctor " + file:                        "warning it begins as a qcow2 image does, and its name does not say so",
		"doctor " + named:                       "problem it is no qcow2 image, as its name says",
		"doctor " + filepath.Join(folder, "no"): "problem no such file or directory",
		"-s tcp:127.0.0.1:1 doctor":             "problem no connection to the daemon",
		"doctor":                                "no socket given",
		"-s " + gone + " doctor":                "has not been found",
	} {
		var out bytes.Buffer
		status := run(t.Context(), strings.Fields(args), nil, &out, &out, func(string) string { return "" })
		text := strings.Join(strings.Fields(out.String()), " ")
		if !strings.Contains(text, want) || (status == exitChecks) != strings.Contains(want, "problem") {
			t.Errorf("%s: status %d, no %q in %s", args, status, want, text)
		}
	}
}
