// SPDX-License-Identifier: Apache-2.0

package handlers

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/job"
	"github.com/blkmirror/blkmirror/qmp"
	"github.com/blkmirror/blkmirror/qmp/api"
)

// ends waits until a connection to the server has ended, as one does that no node has any more.
func (g *guarded) ends(what string) {
	g.Helper()
	select {
	case <-g.ended:
	case <-time.After(10 * time.Second):
		g.Fatalf("%s: a connection is left", what)
	}
}

// TestChainsOnOtherHosts has images name backing files on other hosts, which are connected to while the graph is free.
func TestChainsOnOtherHosts(t *testing.T) {
	g := newGuarded(t)
	aside := 0
	g.config.Aside = func(ctx context.Context, f func(context.Context) error) error {
		aside++
		limited, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		g.must(g.graph.Change(limited, func(*block.Tx) error { return nil }))
		return f(ctx)
	}
	dir := t.TempDir()
	image := func(name, backing, format string) string {
		path := filepath.Join(dir, name)
		writeImage(t, path, strings.ReplaceAll(backing, "$socket", g.socket), format)
		return quote(t, path)
	}
	g.do("nbd-server-start", `{`+address+`}`)
	g.do("block-export-add", `{"type": "nbd", "id": "d", "node-name": "d"}`)
	for _, name := range []string{"far", "top"} {
		g.do("blockdev-add", `{"driver": "file", "node-name": "`+name+`", "filename": `+image(name, "nbd:unix:$socket:exportname=d", "raw")+`}`)
		g.do("block-export-add", `{"type": "nbd", "id": "`+name+`", "node-name": "`+name+`", "writable": true}`)
	}
	before := len(nodes(t, g.Handlers))
	for _, c := range []struct {
		backing, format string
		depth           int64
		connections     int
	}{
		{"nbd:unix:$socket:exportname=d", "raw", 1, 1},
		{"nbd+unix:///d?socket=$socket", "raw", 1, 1},
		{"nbd+unix:///d?socket=$socket", "", 1, 2}, // one to look at the format
		{`json:{"driver": "nbd", "server": {"type": "unix", "path": "$socket"}, "export": "d"}`, "raw", 1, 1},
		{"nbd+unix:///far?socket=$socket", "qcow2", 2, 2},
	} {
		aside = 0
		g.do("blockdev-add", `{"driver": "qcow2", "node-name": "n", "file": {"driver": "file", "filename": `+image("over", c.backing, c.format)+`}}`)
		if n := nodes(t, g.Handlers)["n"]; n.BackingFileDepth != c.depth || aside != c.connections {
			t.Errorf("%s: %d connections, %+v", c.backing, aside, n)
		}
		g.do("blockdev-del", `{"node-name": "n"}`)
		for range c.connections {
			g.ends(c.backing)
		}
	}
	for backing, want := range map[string]string{
		"nbd:unix:$socket:exportname=none":     "Could not open backing file 'nbd:unix:" + g.socket + ":exportname=none'",
		"nbd+unix:///d?socket=$socket":         "not in qcow2 format",
		"nbd+unix:///d?socket=$socket.nowhere": "No such file",
		"nbd:localhost":                        "missing port",
	} {
		g.refused("blockdev-add", `{"driver": "qcow2", "node-name": "n", "file": {"driver": "file", "filename": `+image("over", backing, "qcow2")+`}}`, want)
		if strings.HasSuffix(backing, "$socket") || strings.HasSuffix(backing, "none") {
			g.ends(backing)
		}
		if left := len(nodes(t, g.Handlers)); left != before {
			t.Errorf("%s: %d nodes are left", backing, left-before)
		}
	}

	// An overlay that is there already, and one more that a transaction takes back.
	g.do("blockdev-add", `{"driver": "null-co", "node-name": "disk", "size": 1048576, "read-zeroes": true}`)
	snapshot := `{"node-name": "disk", "snapshot-node-name": "over", "mode": "existing", "snapshot-file": "nbd+unix:///top?socket=$socket"}`
	aside = 0
	g.refused("transaction", `{"actions": [{"type": "blockdev-snapshot-sync", "data": `+snapshot+`}, {"type": "abort", "data": {}}]}`, "Abort")
	g.ends("transaction")
	g.do("blockdev-snapshot-sync", snapshot)
	if n := nodes(t, g.Handlers)["over"]; aside != 2 || n.BackingFileDepth != 1 {
		t.Errorf("%d connections, %+v", aside, n)
	}
	g.refused("blockdev-snapshot-sync", `{"node-name": "over", "snapshot-node-name": "o", "snapshot-file": "nbd+unix:///top?socket=$socket"}`,
		"blockdev-create")
	g.do("blockdev-del", `{"node-name": "over"}`)
	g.ends("overlay")
}

// TestImagesOnOtherHosts makes qcow2 images in exports, whose length is what it is.
func TestImagesOnOtherHosts(t *testing.T) {
	g := newGuarded(t)
	concluded := make(chan struct{}, 1)
	g.config.Emit = func(e qmp.Event) {
		if s, ok := e.(*api.JobStatusChangeEvent); ok && s.Status == api.JobStatusConcluded {
			concluded <- struct{}{}
		}
	}
	g.jobs = job.NewRegistry(jobEvents{g.config.Emit})
	g.do("nbd-server-start", `{`+address+`}`)
	dir := t.TempDir()
	for name, size := range map[string]int64{"small": 64 << 10, "enough": 1 << 20} {
		path := filepath.Join(dir, name)
		g.must(os.WriteFile(path, nil, 0o600))
		g.must(os.Truncate(path, size))
		g.do("blockdev-add", `{"driver": "file", "node-name": "`+name+`", "filename": `+quote(t, path)+`}`)
		g.do("block-export-add", `{"type": "nbd", "id": "`+name+`", "node-name": "`+name+`", "writable": true}`)
	}
	g.do("block-export-add", `{"type": "nbd", "id": "d", "node-name": "d"}`)
	before := len(nodes(t, g.Handlers))
	at := func(export string) string {
		return `{"driver": "file", "filename": "nbd+unix:///` + export + `?socket=$socket"}`
	}
	for i, c := range []struct{ options, want string }{
		{`"size": 1073741824, "file": ` + at("enough"), ""},
		{`"size": 1073741824, "file": ` + at("small"), "needs 262144 bytes, and its file of 65536 bytes cannot grow"},
		{`"size": 1073741824, "preallocation": "full", "file": ` + at("enough"), "its file of 1048576 bytes cannot grow"},
		{`"size": 131072, "file": ` + at("enough") + `, "data-file": ` + at("small"), "The disk needs 131072 bytes, and its file of 65536"},
		{`"size": 65536, "file": ` + at("enough") + `, "data-file": ` + at("small"), ""},
		{`"size": 65536, "file": ` + at("d"), "read-only"},
		{`"size": 65536, "file": ` + at("none"), "none"},
	} {
		id := fmt.Sprint("j", i)
		g.do("blockdev-create", `{"job-id": "`+id+`", "options": {"driver": "qcow2", `+c.options+`}}`)
		<-concluded
		jobs, err := g.QueryJobs(t.Context())
		g.must(err)
		if failure := qmp.Or(jobs[0].Error, ""); c.want == "" != (failure == "") || !strings.Contains(failure, c.want) {
			t.Errorf("%s: %q, want %q", c.options, failure, c.want)
		}
		g.do("job-dismiss", `{"id": "`+id+`"}`)
		if left := len(nodes(t, g.Handlers)); left != before {
			t.Errorf("%s: %d nodes are left", c.options, left-before)
		}
	}
	g.refused("blockdev-create", `{"job-id": "j", "options": {"driver": "nbd"}}`, "'nbd' does not support")
	g.refused("blockdev-create", `{"job-id": "j", "options": {"driver": "file", "size": 65536, "filename": "nbd://localhost/x"}}`,
		"nbd://localhost/x' cannot be created")
	g.do("blockdev-add", `{"driver": "qcow2", "node-name": "n", "file": `+at("enough")+`, "data-file": `+at("small")+`}`)
	if n := nodes(t, g.Handlers)["n"]; n.Image.VirtualSize != 65536 {
		t.Errorf("the image is %+v", n.Image)
	}
	g.do("blockdev-del", `{"node-name": "n"}`)
}
