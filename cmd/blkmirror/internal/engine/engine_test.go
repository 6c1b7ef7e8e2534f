// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"go.uber.org/goleak"

	"github.com/blkmirror/blkmirror/qmp"
	"github.com/blkmirror/blkmirror/qmp/api"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func start(t *testing.T) *Engine {
	t.Helper()
	e := New()
	t.Cleanup(func() {
		if err := e.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return e
}

// open makes a file of a size with some bytes in it, and opens it as a node.
func open(t *testing.T, e *Engine, node string, size int64, bytes map[int64]byte) {
	t.Helper()
	path := filepath.Join(t.TempDir(), node)
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	for at, b := range bytes {
		if _, err := f.WriteAt([]byte{b}, at); err != nil {
			t.Fatal(err)
		}
	}
	arguments := map[string]string{"driver": "file", "node-name": node, "filename": path}
	if err := e.Execute(t.Context(), "blockdev-add", arguments, nil); err != nil {
		t.Fatal(err)
	}
}

func TestExecute(t *testing.T) {
	e := start(t)
	ctx := t.Context()
	open(t, e, "a", 1<<20, nil)
	var nodes []api.BlockDeviceInfo
	if err := e.Execute(ctx, "query-named-block-nodes", nil, &nodes); err != nil || len(nodes) != 1 || nodes[0].Image.VirtualSize != 1<<20 {
		t.Errorf("%v, %v", nodes, err)
	}
	var jobs any
	if err := e.Execute(ctx, "query-jobs", nil, &jobs); err != nil {
		t.Error(err)
	}
	for command, arguments := range map[string]any{"nosuch": nil, "quit": nil, "blockdev-del": map[string]string{"node-name": "b"}, "job-pause": map[string]string{"x": "y"}} {
		err := e.Execute(ctx, command, arguments, nil)
		if _, refused := errors.AsType[*qmp.Error](err); !refused {
			t.Errorf("%s: %v", command, err)
		}
	}
	create := map[string]any{"job-id": "j", "options": map[string]any{"driver": "file", "filename": filepath.Join(t.TempDir(), "x"), "size": 512}}
	if err := e.Execute(ctx, "blockdev-create", create, nil); err != nil {
		t.Fatal(err)
	}
	for event := range e.Events() {
		if status, _ := event.Data.Get("status"); event.Name == "JOB_STATUS_CHANGE" && status == "concluded" {
			break
		}
	}
}

func TestCompare(t *testing.T) {
	const size = 5 << 20
	for name, test := range map[string]struct {
		a, b map[int64]byte
		at   int64 // -1 for equal
	}{
		"empty":           {nil, nil, -1},
		"equal":           {map[int64]byte{7: 1, size - 1: 2}, map[int64]byte{7: 1, size - 1: 2}, -1},
		"zeroes written":  {map[int64]byte{7: 0}, nil, -1},
		"data and a hole": {map[int64]byte{3 << 20: 1}, nil, 3 << 20},
		"the first byte":  {map[int64]byte{0: 1}, map[int64]byte{0: 2}, 0},
		"the last byte":   {map[int64]byte{size - 1: 1}, map[int64]byte{size - 1: 2}, size - 1},
		"two, the first":  {map[int64]byte{1 << 20: 1, 4 << 20: 1}, map[int64]byte{1 << 20: 2, 4 << 20: 2}, 1 << 20},
	} {
		t.Run(name, func(t *testing.T) {
			e := start(t)
			open(t, e, "a", size, test.a)
			open(t, e, "b", size, test.b)
			var readers [2]*Reader
			for i, node := range []string{"a", "b"} {
				var err error
				if readers[i], err = e.Reader(t.Context(), node); err != nil {
					t.Fatal(err)
				}
			}
			last := int64(-1)
			err := Compare(t.Context(), readers[0], readers[1], func(done int64) {
				if done < last {
					t.Errorf("%d after %d", done, last)
				}
				last = done
			})
			if d, differs := errors.AsType[*Difference](err); differs && d.Off != test.at || !differs && (err != nil || test.at >= 0) {
				t.Errorf("%v, want a difference at %d", err, test.at)
			}
			if test.at < 0 && last != size {
				t.Errorf("looked at %d bytes", last)
			}
			for i, bytes := range []map[int64]byte{test.a, test.b} {
				if zero, err := readers[i].Zero(t.Context()); err != nil || zero != (len(bytes) == 0) {
					t.Errorf("%d: %v, %v", i, zero, err)
				}
				if err := readers[i].Close(t.Context()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	e := start(t)
	open(t, e, "a", 1<<20, nil)
	open(t, e, "b", 2<<20, nil)
	a, err := e.Reader(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	b, err := e.Reader(t.Context(), "b")
	if err != nil {
		t.Fatal(err)
	}
	if err := Compare(t.Context(), a, b, func(int64) {}); err == nil {
		t.Error("disks of two sizes are equal")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Compare(ctx, a, a, func(int64) {}); !errors.Is(err, context.Canceled) {
		t.Errorf("after the end: %v", err)
	}
	if err := errors.Join(a.Close(t.Context()), b.Close(t.Context())); err != nil {
		t.Error(err)
	}
	if _, err := e.Reader(t.Context(), "nosuch"); err == nil {
		t.Error("a reader of nothing")
	}
}
