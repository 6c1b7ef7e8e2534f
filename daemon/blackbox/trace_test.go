// SPDX-License-Identifier: Apache-2.0

package blackbox

import (
	"errors"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/blkmirror/blkmirror/block/trace"
)

// requests reads a trace.
func requests(t *testing.T, path string) (list []trace.Request, r *trace.Reader) {
	t.Helper()
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	r, err = trace.NewReader(f)
	must(t, err)
	for {
		q, err := r.Next()
		if errors.Is(err, io.EOF) {
			return list, r
		}
		must(t, err)
		list = append(list, q)
	}
}

// TestTrace has requests recorded from the start, and others while the daemon runs.
func TestTrace(t *testing.T) {
	dir := folder(t)
	d := start(t, "--trace", dir+"/first", "--trace-export", "e", "--blockdev", "null-co,node-name=n,size=1048576,read-zeroes=on",
		"--export", "nbd,id=e,node-name=n,writable=on")
	g := d.guest("n")
	must(t, g.WriteAt(t.Context(), make([]byte, 4096), 8192, 0))
	must(t, g.Flush(t.Context()))
	var totals struct{ Recorded, Dropped int64 }
	d.refused("x-trace-start", args{"filename": dir + "/second"}, "a trace already")
	must(t, d.query("x-trace-stop", nil, &totals))
	d.refused("x-trace-stop", nil, "no trace")
	list, r := requests(t, dir+"/first")
	if len(list) != 2 || totals.Recorded != 2 || totals.Dropped != 0 || r.End == nil {
		t.Fatalf("%+v, %v", list, totals)
	}
	if q := list[0]; q.Where != trace.Export || q.Name != "e" || q.Conn == 0 || q.Op != trace.Write || q.Off != 8192 || q.Len != 4096 || q.Took <= 0 {
		t.Errorf("%+v", q)
	}
	d.refused("x-trace-start", args{"filename": dir + "/first"}, "exists") // nothing is overwritten
	d.do("x-trace-start", args{"filename": dir + "/second", "nodes": []string{"n"}})
	must(t, g.ReadAt(t.Context(), make([]byte, 512), 1024))
	d.do("quit", nil)
	<-d.exited
	if list, r := requests(t, dir+"/second"); len(list) == 0 || r.End == nil || list[0].Where != trace.Node || list[0].Op != trace.Read || list[0].Off != 1024 {
		t.Errorf("%+v", list)
	}
}

func TestLogLevel(t *testing.T) {
	d := start(t, "--log-level", "error", "--log-format", "json")
	d.refused("x-log-level", args{"level": "loud"}, "loud")
	d.do("x-log-level", args{"level": "info"})
	d.stop()
	if !strings.Contains(d.stderr.String(), `"msg":"stopping"`) {
		t.Errorf("the log is %s", d.stderr.String())
	}
}
