// SPDX-License-Identifier: Apache-2.0

package state

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// memory is a folder that fails or stops at a step. What happened to names may be lost until sync, what create wrote is durable.
type memory struct {
	files   map[string][]byte
	durable map[string][]byte
	steps   int
	failAt  int  // the step that fails, from 1; 0 for none
	dead    bool // and all after it
	crashed bool
}

var errStep = errors.New("this step fails")

func newMemory() *memory { return &memory{files: map[string][]byte{}, durable: map[string][]byte{}} }

func (m *memory) step() error {
	m.steps++
	if m.crashed || m.steps == m.failAt {
		m.crashed = m.dead
		return errStep
	}
	return nil
}

// memoryFile is a file of a memory that is being read or written; to write and to sync it is one step.
type memoryFile struct {
	*bytes.Reader
	in   *memory
	name string
}

func (m *memory) Create(name string) (File, error) {
	if m.crashed {
		return nil, errStep
	}
	m.files[name] = nil
	return &memoryFile{nil, m, name}, nil
}

func (m *memory) Make(name string) (File, error) { return m.Create(name) }

func (m *memory) Open(name string) (File, error) {
	content, ok := m.files[name]
	if !ok {
		return nil, fs.ErrNotExist
	}
	return &memoryFile{bytes.NewReader(content), m, name}, nil
}

func (f *memoryFile) WriteAt(content []byte, _ int64) (int, error) {
	if err := f.in.step(); err != nil {
		f.in.files[f.name] = content[:len(content)/2]
		return len(content) / 2, err
	}
	f.in.files[f.name] = content
	return len(content), nil
}

func (f *memoryFile) Truncate(int64) error { return errors.ErrUnsupported }
func (f *memoryFile) Sync() error          { return nil }
func (f *memoryFile) Close() error         { return nil }

func (m *memory) Link(name, second string) error {
	if err := m.step(); err != nil {
		return err
	}
	m.files[second] = m.files[name]
	return nil
}

func (m *memory) Rename(from, to string) error {
	if err := m.step(); err != nil {
		return err
	}
	content, ok := m.files[from]
	if !ok {
		return fs.ErrNotExist
	}
	m.files[to] = content
	delete(m.files, from)
	return nil
}

func (m *memory) Remove(name string) error {
	if m.crashed {
		return errStep
	}
	delete(m.files, name)
	return nil
}

func (m *memory) Names() ([]string, error) { return slices.Sorted(maps.Keys(m.files)), nil }

func (m *memory) Sync() error {
	if err := m.step(); err != nil {
		return err
	}
	m.durable = maps.Clone(m.files)
	return nil
}

func (m *memory) Close() error { return nil }

func named(name string) *State {
	return &State{Objects: []Item{{Definition: json.RawMessage(fmt.Sprintf(`{"id":"%s"}`, name))}}}
}

func load(t *testing.T, files map[string][]byte) string {
	t.Helper()
	s, err := (&Dir{path: "/dir", files: &memory{files: files}}).Load()
	if err != nil {
		t.Fatal(err)
	}
	if len(s.Objects) == 0 {
		return ""
	}
	var o struct{ ID string }
	if err := json.Unmarshal(s.Objects[0].Definition, &o); err != nil {
		t.Fatal(err)
	}
	return o.ID
}

// Whichever step a Save fails or dies at, the old state or the new one is there; after a failure that was undone, the old one.
func TestSaveStepByStep(t *testing.T) {
	for _, first := range []bool{true, false} {
		for _, dead := range []bool{true, false} {
			for at := 1; ; at++ {
				m := newMemory()
				d := &Dir{path: "/dir", files: m}
				old := ""
				if !first {
					old = "old"
					if err := d.Save(named(old)); err != nil {
						t.Fatal(err)
					}
				}
				m.steps, m.failAt, m.dead = 0, at, dead
				err := d.Save(named("new"))
				for _, files := range []map[string][]byte{m.files, m.durable} {
					if is := load(t, files); is != old && is != "new" {
						t.Errorf("first %v, dead %v, step %d: the state is %q", first, dead, at, is)
					}
				}
				if err == nil {
					if at <= 3 || load(t, m.durable) != "new" {
						t.Errorf("first %v: a Save with %d steps left %q", first, at, load(t, m.durable))
					}
					break
				}
				if !errors.Is(err, errStep) || !strings.Contains(err.Error(), "/dir") {
					t.Errorf("step %d: %v", at, err)
				}
				if dead {
					continue
				}
				if is := load(t, m.files); is != old {
					t.Errorf("first %v, step %d: after a failure the state is %q", first, at, is)
				}
				if err := d.Save(named("next")); err != nil || load(t, m.durable) != "next" {
					t.Errorf("first %v, step %d: the Save after that left %q: %v", first, at, load(t, m.durable), err)
				}
			}
		}
	}
}

// A state that a process died over before the folder was synced is durable once another one goes by it.
func TestLoadMakesDurable(t *testing.T) {
	m := newMemory()
	d := &Dir{path: "/dir", files: m}
	if err := d.Save(named("old")); err != nil {
		t.Fatal(err)
	}
	m.steps, m.failAt, m.dead = 0, 4, true // after write, link and rename
	if err := d.Save(named("new")); !m.crashed {
		t.Fatalf("it did not die: %v", err)
	}
	m.crashed, m.failAt = false, 0
	if _, err := (&Dir{path: "/dir", files: m}).Load(); err != nil || load(t, m.files) != "new" || load(t, m.durable) != "new" {
		t.Errorf("%q is seen, and %q is durable: %v", load(t, m.files), load(t, m.durable), err)
	}
}

func TestRevert(t *testing.T) {
	m := newMemory()
	d := &Dir{path: "/dir", files: m}
	revert := func(want string) {
		t.Helper()
		if err := d.Revert(); err != nil || load(t, m.durable) != want {
			t.Errorf("%q after Revert, not %q: %v", load(t, m.durable), want, err)
		}
	}
	save := func(name string) {
		t.Helper()
		if err := d.Save(named(name)); err != nil {
			t.Fatal(err)
		}
	}
	save("a")
	revert("")
	revert("")
	save("a")
	save("b")
	revert("a")
	save("a") // writes nothing, so there is nothing to take back
	revert("a")
	save("c")
	m.steps, m.failAt = 0, 1
	if err := d.Revert(); !errors.Is(err, errStep) {
		t.Errorf("%v", err)
	}
	save("c") // is written although it may be there
	if m.steps < 4 {
		t.Errorf("%d steps", m.steps)
	}
}

func TestDirectory(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	d, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("%v %v", info, err)
	}
	if _, err := Open(path); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("in use by the process %d", os.Getpid())) {
		t.Errorf("a second one: %v", err)
	}
	s := named("a")
	bits := []byte{1, 2, 3}
	c, err := d.SaveContents(0, bits)
	if err != nil {
		t.Fatal(err)
	}
	s.Bitmaps = []Bitmap{{Node: "n", Name: "b", Granularity: 512, Contents: c}}
	if err := d.Save(s); err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if d, err = Open(path); err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	back, err := d.Load()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := d.LoadContents(back.Bitmaps[0].Contents); err != nil || !bytes.Equal(got, bits) {
		t.Errorf("%v %v", got, err)
	}
	for _, damage := range []struct {
		content []byte
		want    string
	}{{[]byte{1, 2}, "cut off"}, {[]byte{1, 2, 4}, "damaged"}, {[]byte{1, 2, 3, 4}, "damaged"}} {
		if err := os.WriteFile(filepath.Join(path, c.File), damage.content, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := d.LoadContents(c); err == nil || !strings.Contains(err.Error(), damage.want) || !strings.Contains(err.Error(), c.File) {
			t.Errorf("%v: %v", damage.content, err)
		}
	}
	if _, err := d.LoadContents(&Contents{File: "bitmaps-/../../x"}); err == nil {
		t.Error("it reads files elsewhere")
	}
	if err := d.DropContents(); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"intent-1", "intent-2", "intent-3"} {
		name, err := d.NewIntent()
		if err != nil || name != want {
			t.Fatalf("%q %v", name, err)
		}
		at, err := d.IntentPath(name)
		if err != nil || at != filepath.Join(path, name) {
			t.Fatalf("%q %v", at, err)
		}
		if err := os.WriteFile(at, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(d.DropIntents([]string{"intent-2"}), d.Sync()); err != nil {
		t.Fatal(err)
	}
	if name, err := d.NewIntent(); err != nil || name != "intent-1" {
		t.Errorf("%q %v", name, err)
	}
	if _, err := d.IntentPath("intent-/../../x"); err == nil {
		t.Error("it reads files elsewhere")
	}
	for i, keep := range []bool{true, false} {
		name, err := d.SetAside(keep)
		if err != nil || name != fmt.Sprintf("%s/state.ignored-%d", path, i+1) {
			t.Errorf("%q %v", name, err)
		}
	}
	if name, err := d.SetAside(false); name != "" || err != nil {
		t.Errorf("%q %v", name, err)
	}
	if s, err := d.Load(); err != nil || len(s.Objects) != 0 {
		t.Errorf("%v %v", s, err)
	}
	if err := d.Save(named("a")); err != nil {
		t.Error(err)
	}
}
