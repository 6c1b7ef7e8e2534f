// SPDX-License-Identifier: Apache-2.0

package handlers

import (
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/blkmirror/blkmirror/qmp"
	"github.com/blkmirror/blkmirror/qmp/api"
)

// The images that blockdev-create makes are in order, and are what was asked for.
func TestCreateQcow2(t *testing.T) {
	if _, err := exec.LookPath("qemu-img"); err != nil {
		t.Skip("qemu-img is not installed: nothing to check images with")
	}
	dir := t.TempDir()
	base, data := filepath.Join(dir, "base"), filepath.Join(dir, "data")
	writeRaw(t, base)
	dataFile := `"data-file": {"driver": "file", "filename": ` + quote(t, data) + `}`
	for i, c := range []struct {
		options string
		want    string // of the job's error; "" for none
		check   func(i map[string]any) bool
	}{
		{options: `"size": 1048576`},
		{options: `"size": 1048576, "version": "v2", "cluster-size": 512`, check: func(i map[string]any) bool { return i["cluster-size"] == 512. }},
		{options: `"size": 1048576, "cluster-size": 2097152, "refcount-bits": 64, "compression-type": "zstd"`},
		{options: `"size": 1048576, "refcount-bits": 1, "lazy-refcounts": true, "preallocation": "metadata"`},
		{options: `"size": 1048576, "extended-l2": true, "preallocation": "falloc"`},
		{options: `"size": 1048576, "preallocation": "full"`, check: func(i map[string]any) bool { return i["actual-size"].(float64) >= 1<<20 }},
		{options: `"size": 1048576, "backing-file": "base", "backing-fmt": "raw"`, check: func(i map[string]any) bool {
			return i["backing-filename"] == "base" && i["backing-filename-format"] == "raw" && i["full-backing-filename"] == base
		}},
		{options: `"size": 1048576, "data-file-raw": true, ` + dataFile, check: func(i map[string]any) bool {
			specific := i["format-specific"].(map[string]any)["data"].(map[string]any)
			return specific["data-file"] == data && specific["data-file-raw"] == true
		}},
		{options: `"size": 18446744073709551104`, want: "too large"},
		{options: `"size": 1048576, "cluster-size": 1000`, want: "luster"},
		{options: `"size": 1048576, "refcount-bits": 3`, want: "efcount"},
		{options: `"size": 1048576, "version": "v2", "lazy-refcounts": true`, want: "azy"},
		{options: `"size": 1048576, "data-file-raw": true`, want: "data-file"},
		{options: `"size": 1048576, "backing-fmt": "raw"`, want: "backing"},
		{options: `"size": 1048576, "encrypt": {"format": "luks"}`, want: "encrypt"},
		{options: `"size": 1048576, "data-file": "nowhere"`, want: "nowhere"},
	} {
		concluded := make(chan struct{})
		h := New(Config{Emit: func(e qmp.Event) {
			if s, ok := e.(*api.JobStatusChangeEvent); ok && s.Status == api.JobStatusConcluded {
				close(concluded)
			}
		}})
		do := func(command, arguments string) {
			t.Helper()
			value, err := qmp.NewReader(strings.NewReader(arguments + "\n")).Next()
			if err == nil {
				_, err = h.Dispatch(context.Background(), command, value.(*qmp.Object))
			}
			if err != nil {
				t.Fatalf("%s %s: %v", command, arguments, err)
			}
		}
		path := filepath.Join(dir, fmt.Sprintf("image%d", i))
		for _, p := range []string{path, data} {
			writeRaw(t, p)
		}
		do("blockdev-create", `{"job-id": "j", "options": {"driver": "qcow2", `+c.options+`,
			"file": {"driver": "file", "filename": `+quote(t, path)+`}}}`)
		<-concluded
		jobs, err := h.QueryJobs(context.Background())
		if err != nil || len(jobs) != 1 {
			t.Fatal(jobs, err)
		}
		failure := qmp.Or(jobs[0].Error, "")
		if c.want == "" != (failure == "") || !strings.Contains(failure, c.want) {
			t.Errorf("%s: %q, want %q", c.options, failure, c.want)
		}
		if left := nodes(t, h); len(left) > 0 {
			t.Errorf("%s: %d nodes are left", c.options, len(left))
		}
		if err := h.Close(context.Background(), 0); err != nil {
			t.Error(err)
		}
		if c.want != "" {
			continue
		}
		if out, err := exec.Command("qemu-img", "check", path).CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", c.options, err, out)
		}
		out, err := exec.Command("qemu-img", "info", "--output=json", path).Output()
		info := map[string]any{}
		if err == nil {
			err = json.Unmarshal(out, &info)
		}
		if err != nil || info["virtual-size"] != float64(1<<20) || c.check != nil && !c.check(info) {
			t.Errorf("%s: %v\n%s", c.options, err, out)
		}
	}
}
