// SPDX-License-Identifier: Apache-2.0

package blackbox

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"os/exec"
	"strings"
	"testing"
	"time"

	foreign "github.com/digitalocean/go-qemu/qmp"
)

// socatClient is a QMP client that types.
type socatClient struct {
	t     testing.TB
	in    io.WriteCloser
	lines chan string
}

func socat(t testing.TB, socket string) *socatClient {
	t.Helper()
	cmd := exec.Command(tool(t, "socat"), "-t", "10", "-", "UNIX-CONNECT:"+socket)
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	c := &socatClient{t: t, in: in, lines: make(chan string, 1000)}
	go func() {
		defer close(c.lines)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			c.lines <- lines.Text()
		}
		_ = cmd.Wait()
	}()
	t.Cleanup(func() {
		_ = in.Close()
		for range c.lines {
		}
	})
	return c
}

func (c *socatClient) types(text string) {
	c.t.Helper()
	_, err := io.WriteString(c.in, text)
	must(c.t, err)
}

// reads waits for a line that contains a word.
func (c *socatClient) reads(word string) {
	c.t.Helper()
	timeout := time.After(patience)
	for {
		select {
		case line, open := <-c.lines:
			if !open {
				c.t.Fatalf("the connection ended while waiting for %q", word)
			}
			if strings.Contains(line, word) {
				return
			}
		case <-timeout:
			c.t.Fatalf("no line with %q", word)
		}
	}
}

func TestTwoSocatClientsAtOnce(t *testing.T) {
	tool(t, "socat")
	d := start(t)
	d.disks(4<<20, nil)
	first, second := socat(t, d.path("qmp")), socat(t, d.path("qmp"))
	for _, c := range []*socatClient{first, second} {
		c.reads(`{"QMP": {"version": {"qemu": {`)
		c.types(`{"execute": "qmp_capabilities", "id": "hello"}`) // no newline is needed
		c.reads(`{"return": {}, "id": "hello"}`)
	}
	first.types(`{'execute': 'blockdev-mirror', 'id': 7, 'arguments': {'job-id': 'm', 'device': 'src', 'target': 'dst', 'sync': 'full'}}` + "\n")
	first.reads(`"id": 7`)
	for _, c := range []*socatClient{first, second} {
		c.reads(`"event": "BLOCK_JOB_READY"`)
	}
	second.types(`{"execute": "job-complete", "arguments": {"id": "m"}}`)
	second.reads(`{"return": {}}`)
	for _, c := range []*socatClient{first, second} {
		c.reads(`"event": "BLOCK_JOB_COMPLETED"`)
	}
	second.types(`{"execute": "nonsense", "id": [1, {"a": null}]}`)
	second.reads(`{"id": [1, {"a": null}], "error": {"class": "CommandNotFound"`)
}

func TestForeignMonitor(t *testing.T) {
	d := start(t)
	d.disks(4<<20, nil)
	m, err := foreign.NewSocketMonitor("unix", d.path("qmp"), patience)
	must(t, err)
	must(t, m.Connect())
	defer func() { must(t, m.Disconnect()) }()
	if m.Version == nil || m.Version.QEMU.Major != 11 {
		t.Errorf("it was greeted by version %+v", m.Version)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	events, err := m.Events(ctx)
	must(t, err)
	names := make(chan string, 100)
	go func() { // it delivers no reply while an event waits for its reader
		defer close(names)
		for e := range events {
			names <- e.Event
		}
	}()
	_, err = m.Run([]byte(`{"execute": "blockdev-mirror", "arguments":
		{"job-id": "m", "device": "src", "target": "dst", "sync": "full", "copy-mode": "write-blocking"}}`))
	must(t, err)
	timeout := time.After(patience)
	var seen []string
	for len(seen) == 0 || seen[len(seen)-1] != "BLOCK_JOB_READY" {
		select {
		case name := <-names:
			seen = append(seen, name)
		case <-timeout:
			t.Fatalf("not ready; events: %v", seen)
		}
	}
	raw, err := m.Run([]byte(`{"execute": "query-block-jobs"}`))
	must(t, err)
	var reply struct {
		Return []struct {
			Device         string
			Ready          bool
			ActivelySynced bool `json:"actively-synced"`
		}
	}
	must(t, json.Unmarshal(raw, &reply))
	if len(reply.Return) != 1 || !reply.Return[0].Ready || !reply.Return[0].ActivelySynced {
		t.Errorf("query-block-jobs: %s", raw)
	}
	if _, err := m.Run([]byte(`{"execute": "job-complete", "arguments": {"id": "no such job"}}`)); err == nil ||
		!strings.Contains(err.Error(), "Job not found") {
		t.Errorf("the error of an unknown job is %v", err)
	}
}
