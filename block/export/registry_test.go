// SPDX-License-Identifier: Apache-2.0

package export

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/blkmirror/blkmirror/block"
)

// dummy is an export that may be in use, and may not be able to stop.
type dummy struct {
	id    string
	inUse bool
	stuck error
}

func (d *dummy) ID() string         { return d.id }
func (d *dummy) Type() string       { return "dummy" }
func (d *dummy) Node() *block.Node  { return nil }
func (d *dummy) ShuttingDown() bool { return false }

func (d *dummy) Stop(_ context.Context, hard bool) error {
	if d.inUse && !hard {
		return InUse(d.id)
	}
	return d.stuck
}

func TestRegistry(t *testing.T) {
	var deleted []string
	r := NewRegistry(func(id string) { deleted = append(deleted, id) })
	add := func(d *dummy) error { return r.Add(d.id, func() (Export, error) { return d, nil }) }
	wantErr := func(err error, words string, kind block.Kind) {
		t.Helper()
		if err == nil || !strings.Contains(err.Error(), words) || block.KindOf(err) != kind {
			t.Errorf("error is %v, want %q and %v", err, words, kind)
		}
	}
	ids := func() (ids []string) {
		for _, e := range r.List() {
			ids = append(ids, e.ID())
		}
		return ids
	}
	wantErr(add(&dummy{id: "1"}), "Invalid block export id", block.KindInvalid)
	broken := errors.New("broken")
	if err := r.Add("a", func() (Export, error) {
		wantErr(add(&dummy{id: "a"}), "Block export id 'a' is already in use", block.KindExists) // while it is made
		return nil, broken
	}); err != broken {
		t.Errorf("error is %v", err)
	}
	stuck := &dummy{id: "c", stuck: broken}
	for _, d := range []*dummy{{id: "a"}, {id: "b", inUse: true}, stuck, {id: "d"}} {
		if err := add(d); err != nil {
			t.Fatal(err)
		}
	}
	wantErr(add(&dummy{id: "b"}), "Block export id 'b' is already in use", block.KindExists)
	wantErr(r.Remove(t.Context(), "none", true), "Export 'none' is not found", block.KindNotFound)
	wantErr(r.Remove(t.Context(), "b", false), "export 'b' still in use", block.KindBusy)
	if want := []string{"d", "c", "b", "a"}; !slices.Equal(ids(), want) {
		t.Errorf("ids are %v, want %v", ids(), want)
	}
	if err := r.Remove(t.Context(), "a", false); err != nil {
		t.Error(err)
	}
	if err := r.RemoveAll(t.Context(), func(e Export) bool { return e.Type() == "dummy" }); !errors.Is(err, broken) {
		t.Errorf("error is %v", err)
	}
	if want := []string{"c"}; !slices.Equal(ids(), want) {
		t.Errorf("ids are %v, want %v", ids(), want)
	}
	stuck.stuck = nil
	if err := r.Remove(t.Context(), "c", false); err != nil {
		t.Error(err)
	}
	if want := []string{"a", "d", "b", "c"}; !slices.Equal(deleted, want) {
		t.Errorf("deleted are %v, want %v", deleted, want)
	}
}
