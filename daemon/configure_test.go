// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"bytes"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"
)

func written(t *testing.T, text string) (file string) {
	t.Helper()
	file = t.TempDir() + "/c"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// The example in the documentation is what it says, and is well-formed.
func TestConfigurationExample(t *testing.T) {
	text, err := os.ReadFile("../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllSubmatch(text, -1)
	if len(blocks) != 1 {
		t.Fatalf("%d examples", len(blocks))
	}
	line, err := parseCommandLine([]string{"--check-config", "--config", written(t, string(blocks[0][1]))})
	if err != nil {
		t.Fatal(err)
	}
	var steps []string
	for _, s := range line.steps {
		steps = append(steps, s.option)
	}
	if got := strings.Join(steps, " "); got != "object blockdev nbd-server export chardev monitor" {
		t.Error(got)
	}
	if line.stateDir != "/var/lib/blkmirror/state" || line.limits.memory != 512<<20 || line.drain != 10*time.Second ||
		len(line.limits.sandbox.Paths) != 2 || line.watch.metrics != "127.0.0.1:9811" {
		t.Errorf("%+v", line)
	}
}

// Options of the command line come after those of files: single ones override, others are added.
func TestConfigurationAndCommandLine(t *testing.T) {
	first := written(t, "pidfile: /first\nmax-jobs: 5\nmax-exports: 7\nblockdev: [{driver: null-co, node-name: a}]\nobject: [{qom-type: iothread, id: i}]\nsandbox: /a\n")
	second := written(t, "max-exports: 8\nblockdev: {driver: null-co, node-name: b}\n")
	line, err := parseCommandLine([]string{"--max-jobs", "6", "--blockdev", "null-co,node-name=c", "--config", first, "--sandbox", "/b", "--config", second})
	if err != nil {
		t.Fatal(err)
	}
	var steps []string
	for _, s := range line.steps {
		steps = append(steps, s.text)
	}
	want := []string{`{"qom-type":"iothread","id":"i"}`, `{"driver":"null-co","node-name":"a"}`, `{"driver":"null-co","node-name":"b"}`, "null-co,node-name=c"}
	if fmt.Sprint(steps) != fmt.Sprint(want) {
		t.Errorf("steps %v", steps)
	}
	if l := line.limits; line.pidFile != "/first" || l.handlers.Jobs != 6 || l.handlers.Exports != 8 || fmt.Sprint(l.sandbox.Paths) != "[/a /b]" {
		t.Errorf("%+v, %s", l, line.pidFile)
	}
}

// Errors name file, line and key, and do not repeat what stands in the file beside that.
func TestConfigurationErrors(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"blockdev:\n- driver: file\n  node-name: a\n  filename: x\n  oops: hush\n", ":5: blockdev: "},
		{"blockdev:\n- driver: file\n  node-name: a\n  filename: x\n  cache:\n    direkt: true\n", ":6: blockdev: "},
		{"export: [{type: bad, id: hush, node-name: n}]", ":1: export: "},
		{"chardev: [{backend: socket, id: x, path: hush, server: true, fd: 3, wait: false}]", ":1: chardev: "},
		{"max-jobs: many", ":1: 'max-jobs': "},
		{"memory-limit: hush", ":1: 'memory-limit': "},
		{"memory_limit: hush", ":1: unknown option 'memory_limit'; 'memory-limit' is one"},
		{"config: hush", ":1: unknown option 'config'"},
		{"monitor: [{chardev: hush, mode: readline}]", ":1: monitor: "},
	} {
		file := written(t, c.text)
		var out, said bytes.Buffer
		status := Main([]string{"--check-config", "--config", file}, &out, &said)
		if status != 1 || !strings.Contains(said.String(), file+c.want) {
			t.Errorf("%q: status %d, %s", c.text, status, said.String())
		}
		if strings.Contains(said.String(), "hush") {
			t.Errorf("%q: a value is in %s", c.text, said.String())
		}
	}
	var out, said bytes.Buffer
	if status := Main([]string{"--check-config", "--config", "/nowhere"}, &out, &said); status != 1 || !strings.Contains(said.String(), "/nowhere") {
		t.Errorf("status %d, %s", status, said.String())
	}
	if status := Main([]string{"--check-config", "--blockdev", "null-co,node-name=n"}, &out, &said); status != 0 || !strings.Contains(out.String(), "well-formed") {
		t.Errorf("status %d, %s", status, said.String())
	}
}
