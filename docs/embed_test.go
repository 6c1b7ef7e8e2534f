// SPDX-License-Identifier: Apache-2.0

package docs

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// The example of docs/embedding.md mirrors an image, and what it writes meanwhile is in both.
func TestEmbed(t *testing.T) {
	dir := t.TempDir()
	disk := bytes.Repeat([]byte("disk"), 1<<18)
	for name, data := range map[string][]byte{"/old": disk, "/new": make([]byte, len(disk))} {
		if err := os.WriteFile(dir+name, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, programs+"/embed", dir+"/old", dir+"/new").CombinedOutput()
	if err != nil || !strings.HasSuffix(string(out), "the guest is on: target\n") {
		t.Fatalf("%v: %s", err, out)
	}
	copy(disk[4096:], bytes.Repeat([]byte("written beside the mirror"), 100))
	got, err := os.ReadFile(dir + "/new")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, disk) {
		t.Error("the copy is not what the guest had")
	}
}

// What the pages link to is there.
func TestLinks(t *testing.T) {
	pages := []string{"../README.md"}
	for _, folder := range []string{".", "howto", "reference"} {
		entries, err := os.ReadDir(folder)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if strings.HasSuffix(e.Name(), ".md") {
				pages = append(pages, folder+"/"+e.Name())
			}
		}
	}
	for _, page := range pages {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, to := range link.FindAllSubmatch(text, -1) {
			path, _, _ := strings.Cut(string(to[1]), "#")
			if path == "" || strings.Contains(path, "://") {
				continue
			}
			if _, err := os.Stat(page[:strings.LastIndex(page, "/")+1] + path); err != nil {
				t.Errorf("%s leads to %s, which is not there", page, to[1])
			}
		}
	}
}
