// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/blkmirror/blkmirror/cmd/blkmirror/internal/fakedaemon"
	"github.com/blkmirror/blkmirror/qmp"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// shortFolder returns a folder whose name leaves room for that of a socket.
func shortFolder(t *testing.T) string {
	t.Helper()
	folder, err := os.MkdirTemp("", "bm")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(folder) })
	return folder
}

// daemon listens as one that follows a script, and returns its socket.
func daemon(t *testing.T, script fakedaemon.Script) string {
	return daemonWithEvents(t, script, func(*fakedaemon.Conn) {})
}

// daemonWithEvents is a daemon that does something right after negotiation.
func daemonWithEvents(t *testing.T, script fakedaemon.Script, first func(*fakedaemon.Conn)) string {
	t.Helper()
	socket := filepath.Join(shortFolder(t), "qmp")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			fakedaemon.Serve(conn, func(c *fakedaemon.Conn, command string, arguments *qmp.Object) (any, error) {
				if command == "qmp_capabilities" {
					c.Later(func() { first(c) })
					return nil, nil
				}
				return script(c, command, arguments)
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		serving.Wait()
	})
	return socket
}

// result is how a run ended.
type result struct {
	status         int
	stdout, stderr string
}

// try runs the client on a socket.
func try(ctx context.Context, socket string, args ...string) result {
	var stdout, stderr bytes.Buffer
	status := run(ctx, args, nil, &stdout, &stderr, func(name string) string {
		if name == envSocket {
			return socket
		}
		return ""
	})
	return result{status, stdout.String(), stderr.String()}
}

// expect checks how a run ended. stderr must contain what is wanted; stdout
// must be it.
func (r result) expect(t *testing.T, status int, stdout, stderr string) {
	t.Helper()
	if r.status != status {
		t.Errorf("exit status %d, want %d", r.status, status)
	}
	if r.stdout != stdout {
		t.Errorf("stdout:\n%swant:\n%s", r.stdout, stdout)
	}
	if !strings.Contains(r.stderr, stderr) || stderr == "" && r.stderr != "" {
		t.Errorf("stderr: %q, want %q", r.stderr, stderr)
	}
}

// answers is a script of fixed answers, by command.
type answers map[string]string

var errHangUp = errors.New("hang up")

func (a answers) script(_ *fakedaemon.Conn, command string, _ *qmp.Object) (any, error) {
	text, ok := a[command]
	if !ok {
		return nil, qmp.ErrCommandNotFound(command)
	}
	if text == "" {
		return nil, errHangUp
	}
	return parseJSON(text)
}

const jobsTable = `JOB  TYPE    STATUS     DONE   TOTAL   COPIED   OFFLOADED  ZEROED  SKIPPED  DIRTY   ERROR
m    mirror  running    1 MiB  64 GiB  512 KiB  -          0 B     512 KiB  64 GiB  -
c    create  concluded  1      1       -        -          -       -        -       no space
`

func TestTables(t *testing.T) {
	socket := daemon(t, answers{
		"query-named-block-nodes": `[
			{"file": "/srv/a.img", "node-name": "#block1", "ro": false, "drv": "mirror_top", "backing_file_depth": 0, "active": true,
			 "encrypted": false, "detect_zeroes": "off", "bps": 0, "bps_rd": 0, "bps_wr": 0, "iops": 0, "iops_rd": 0, "iops_wr": 0,
			 "write_threshold": 0, "cache": {"writeback": true, "direct": false, "no-flush": false},
			 "image": {"filename": "/srv/a.img", "format": "mirror_top", "virtual-size": 68719476736, "actual-size": 1610612736},
			 "children": [{"child": "backing", "node-name": "a"}],
			 "dirty-bitmaps": [{"name": "d", "count": 1048576, "granularity": 65536, "recording": true, "busy": true, "persistent": false},
			  {"count": 0, "granularity": 4096, "recording": false, "busy": false, "persistent": true, "inconsistent": true}]},
			{"file": "", "ro": true, "drv": "null-co", "backing_file_depth": 0, "active": true, "children": [], "x-new": 1,
			 "encrypted": false, "detect_zeroes": "off", "bps": 0, "bps_rd": 0, "bps_wr": 0, "iops": 0, "iops_rd": 0, "iops_wr": 0,
			 "write_threshold": 0, "cache": {"writeback": true, "direct": false, "no-flush": false},
			 "image": {"filename": "", "format": "null-co", "virtual-size": 1000}}]`,
		"query-block-exports": `[{"id": "e", "type": "nbd", "node-name": "a", "shutting-down": false},
			{"id": "old", "type": "nbd", "node-name": "b", "shutting-down": true}]`,
		"query-jobs": `[{"id": "m", "type": "mirror", "status": "running", "current-progress": 1048576, "total-progress": 68719476736,
			 "copied-bytes": 524288, "zeroed-bytes": 0, "skipped-bytes": 524288, "dirty-bytes": 68718428160},
			{"id": "c", "type": "create", "status": "concluded", "current-progress": 1, "total-progress": 1, "error": "no space"}]`,
	}.script)
	for command, want := range map[string]string{
		"nodes": `NODE     DRIVER      ACCESS  SIZE    ALLOCATED  CHILDREN   FILE
#block1  mirror_top  rw      64 GiB  1.5 GiB    backing=a  /srv/a.img
-        null-co     ro      1000 B  -          -          -
`,
		"exports": `EXPORT  TYPE  NODE  STATE
e       nbd   a     active
old     nbd   b     shutting down
`,
		"jobs": jobsTable,
		"status": `daemon   fake (QMP 11.1.3)
nodes    2, with 0 B in 0 files
exports  2
jobs     2

` + jobsTable,
		"export list": `EXPORT  TYPE  NODE  STATE
e       nbd   a     active
old     nbd   b     shutting down
`,
		"bitmap list": `NODE     BITMAP  DIRTY  GRANULARITY  STATE
#block1  d       1 MiB  64 KiB       recording,busy
#block1  -       0 B    4 KiB        disabled,persistent,inconsistent
`,
	} {
		t.Run(command, func(t *testing.T) {
			try(t.Context(), socket, strings.Fields(command)...).expect(t, exitOK, want, "")
		})
	}
	t.Run("JSON", func(t *testing.T) {
		r := try(t.Context(), socket, "nodes", "--json")
		var nodes []map[string]any
		if err := json.Unmarshal([]byte(r.stdout), &nodes); err != nil || len(nodes) != 2 || nodes[1]["x-new"] != 1.0 {
			t.Errorf("%v: %s", err, r.stdout)
		}
		r.expect(t, exitOK, r.stdout, "")
	})
}

func TestUsage(t *testing.T) {
	for _, args := range [][]string{
		{}, {"frob"}, {"nodes", "extra"}, {"nodes", "--frob"}, {"mirror", "start", "a"}, {"mirror", "start", "a", "b", "--sync", "some"},
		{"mirror", "start", "a", "b", "--speed", "fast"}, {"mirror", "start", "a", "b", "--granularity", "1T"}, {"mirror", "start", "a", "b", "--auto-dismiss=maybe"},
		{"mirror", "speed", "m", "1Q"}, {"mirror", "speed", "m"}, {"mirror", "complete"}, {"mirror"}, {"mirror", "frob"}, {"mirror", "mode", "m", "fast"}, {"mirror", "latency", "m", "5"},
		{"mirror", "start", "a", "b", "--max-guest-latency", "-1s"}, {"bitmap"}, {"export"}, {"nodes", "--timeout", "-1s"}, {"nodes", "--timeout", "soon"},
		{"qmp"}, {"qmp", "{", "x"}, {"qmp", "{"}, {"qmp", "{}"}, {"qmp", `{"execute": 1}`}, {"qmp", `{"execute": "a", "foo": 1}`},
		{"qmp", `{"execute": "a"} {`}, {"qmp", "a", "b"}, {"qmp", "a", "=b"}, {"qmp", "a", "b=[1"}, {"qmp", "a", "b=1", "b=2"}, {"qmp", "a", "b=1", "b.c=2"},
	} {
		r := try(t.Context(), "/nonexistent", args...)
		if r.status != exitUsage || r.stdout != "" || !strings.Contains(r.stderr, "blkmirror: ") {
			t.Errorf("%q: status %d, stdout %q, stderr %q", args, r.status, r.stdout, r.stderr)
		}
	}
	try(t.Context(), "", "nodes").expect(t, exitUsage, "", envSocket)
}

func TestHelpTellsExitStatuses(t *testing.T) {
	r := try(t.Context(), "", "--help")
	if r.status != exitOK || !strings.Contains(r.stdout, exitHelp) {
		t.Errorf("status %d: %s", r.status, r.stdout)
	}
}

func TestNoConnection(t *testing.T) {
	try(t.Context(), "/nonexistent/qmp", "nodes").expect(t, exitNoConnection, "", "'/nonexistent/qmp'")
	socket := daemon(t, answers{"query-jobs": ""}.script)
	try(t.Context(), socket, "jobs").expect(t, exitNoConnection, "", socket)
	try(t.Context(), "/nonexistent/qmp", "jobs", "--json").expect(t, exitNoConnection, "", `"exit-status": 3`)
}

func TestSocketByFlag(t *testing.T) {
	socket := daemon(t, answers{"query-block-exports": "[]"}.script)
	try(t.Context(), "/nonexistent", "-s", socket, "exports").expect(t, exitOK, "EXPORT  TYPE  NODE  STATE\n", "")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var serving sync.WaitGroup
	defer serving.Wait()
	serving.Go(func() {
		if conn, err := l.Accept(); err == nil {
			fakedaemon.Serve(conn, answers{"qmp_capabilities": "{}", "query-block-exports": "[]"}.script)
		}
	})
	try(t.Context(), "", "-s", "tcp:"+l.Addr().String(), "exports", "--json").expect(t, exitOK, "[]\n", "")
}

// TestBusyDaemon is one that talks to somebody else: it accepts, or its
// kernel does, and does not greet.
func TestBusyDaemon(t *testing.T) {
	socket := filepath.Join(shortFolder(t), "qmp")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	try(t.Context(), socket, "nodes", "--timeout", "50ms").expect(t, exitTimeout, "", "timeout of 50ms")

	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	c := &cli{socket: socket, patience: time.Millisecond, stderr: writerFunc(func(text []byte) (int, error) {
		if !bytes.Contains(text, []byte("waiting for the daemon at '"+socket+"'")) {
			t.Errorf("said %q", text)
		}
		cancel(errInterrupted)
		return len(text), nil
	})}
	if _, err := c.connect(ctx); exitStatus(ranError{err}) != exitInterrupted {
		t.Errorf("error %v", err)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(text []byte) (int, error) { return f(text) }
