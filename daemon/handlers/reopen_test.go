// SPDX-License-Identifier: Apache-2.0

package handlers

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/blkmirror/blkmirror/qmp"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// run makes handlers and returns what executes commands on them, with arguments in JSON.
func run(t *testing.T) (*Handlers, func(command, arguments string) error) {
	t.Helper()
	h := New(Config{Emit: func(qmp.Event) {}})
	t.Cleanup(func() {
		if err := h.Close(context.Background(), 0); err != nil {
			t.Error(err)
		}
	})
	return h, func(command, arguments string) error {
		t.Helper()
		value, err := qmp.NewReader(strings.NewReader(arguments + "\n")).Next()
		if err != nil {
			t.Fatal(err)
		}
		_, err = h.Dispatch(context.Background(), command, value.(*qmp.Object))
		return err
	}
}

func quote(t *testing.T, s string) string {
	t.Helper()
	text, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// A name that leads to another file by now must not bring that under the node's users.
func TestReopenFindsTheSameFile(t *testing.T) {
	name := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(name, make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	h, do := run(t)
	options := `{"driver": "file", "node-name": "f", "filename": ` + quote(t, name) + `, "read-only": `
	if err := do("blockdev-add", options+`false}`); err != nil {
		t.Fatal(err)
	}
	if err := do("blockdev-reopen", `{"options": [`+options+`true}]}`); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(name, name+".old"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	err := do("blockdev-reopen", `{"options": [`+options+`false}]}`)
	if err == nil || !strings.Contains(err.Error(), "leads to another file now") {
		t.Errorf("reopened on another file: %v", err)
	}
	n, err := h.graph.Node("f")
	if err != nil || !n.Options().ReadOnly {
		t.Errorf("not as before: %v", err)
	}
}

// What is remembered of nodes goes with them, and a child that was given away goes too.
func TestOptionsOfClosedNodesAreForgotten(t *testing.T) {
	h, do := run(t)
	for _, step := range [][2]string{
		{"blockdev-add", `{"driver": "null-co", "node-name": "n", "size": 1048576}`},
		{"blockdev-add", `{"driver": "raw", "node-name": "r", "file": {"driver": "null-co", "size": 1048576}}`},
		{"blockdev-reopen", `{"options": [{"driver": "raw", "node-name": "r", "file": "n"}]}`},
	} {
		if err := do(step[0], step[1]); err != nil {
			t.Fatalf("%s %s: %v", step[0], step[1], err)
		}
	}
	if len(h.opened) != 2 || len(h.graph.Nodes()) != 2 {
		t.Errorf("%d nodes, %d remembered", len(h.graph.Nodes()), len(h.opened))
	}
	if err := do("blockdev-add", `{"driver": "raw", "node-name": "x", "file": {"driver": "null-co"}, "size": 3}`); err == nil {
		t.Error("an odd window was opened")
	}
	if err := do("blockdev-del", `{"node-name": "r"}`); err != nil {
		t.Fatal(err)
	}
	if len(h.opened) != 1 || len(h.graph.Nodes()) != 1 {
		t.Errorf("%d nodes, %d remembered", len(h.graph.Nodes()), len(h.opened))
	}
}

// A child that was given by its name keeps its options when its parent is reopened; an inline one can be redefined inline.
func TestReopenOfChildren(t *testing.T) {
	h, do := run(t)
	for _, step := range []struct{ command, arguments, failure string }{
		{"blockdev-add", `{"driver": "null-co", "node-name": "n"}`, ""},
		{"blockdev-add", `{"driver": "raw", "node-name": "a", "file": "n"}`, ""},
		{"blockdev-add", `{"driver": "raw", "node-name": "b", "file": {"driver": "null-co", "node-name": "i"}}`, ""},
		{"blockdev-reopen", `{"options": [{"driver": "raw", "node-name": "a", "file": "n", "read-only": true}]}`, ""},
		{"blockdev-reopen", `{"options": [{"driver": "raw", "node-name": "b", "file": "i", "read-only": true}]}`, ""},
		{"blockdev-reopen", `{"options": [{"driver": "raw", "node-name": "a", "file": {"driver": "null-co"}}]}`,
			"can only be given by its name"},
		{"blockdev-reopen", `{"options": [{"driver": "raw", "node-name": "b", "file": {"driver": "null-co", "node-name": "n"}}]}`,
			"Cannot change the option 'file.node-name'"},
		{"blockdev-reopen", `{"options": [{"driver": "raw", "node-name": "b", "file": {"driver": "file", "filename": "x"}}]}`,
			"Cannot change the option 'driver'"},
		{"blockdev-reopen", `{"options": [{"driver": "raw", "node-name": "b", "read-only": true,
			"file": {"driver": "null-co", "detect-zeroes": "on"}}]}`, ""},
		{"blockdev-reopen", `{"options": [{"driver": "raw", "node-name": "b", "file": "i"},
			{"driver": "raw", "node-name": "b", "file": "i"}]}`, "more than once"},
	} {
		err := do(step.command, step.arguments)
		if (err != nil) != (step.failure != "") || err != nil && !strings.Contains(err.Error(), step.failure) {
			t.Errorf("%s %s: %v, want %q", step.command, step.arguments, err, step.failure)
		}
	}
	for name, want := range map[string]string{"n": "false off", "a": "true off", "b": "true off", "i": "true on"} {
		n, err := h.graph.Node(name)
		if err != nil {
			t.Fatal(err)
		}
		got := "false "
		if n.Options().ReadOnly {
			got = "true "
		}
		if got += n.Options().DetectZeroes.String(); got != want {
			t.Errorf("node %s: %s, want %s", name, got, want)
		}
	}
}
