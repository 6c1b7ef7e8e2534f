// SPDX-License-Identifier: Apache-2.0

package file

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/blkmirror/blkmirror/block"
)

func TestCreate(t *testing.T) {
	const size = 4 << 20
	for _, p := range []Preallocation{PreallocationOff, PreallocationFalloc, PreallocationFull} {
		for _, exists := range []bool{false, true} {
			name := filepath.Join(t.TempDir(), "new")
			if exists {
				must(t, os.WriteFile(name, bytes.Repeat([]byte{1}, 2*size), 0o600))
			}
			var done, total int64
			must(t, Create(bg, CreateOptions{Filename: name, Size: size - 100, Preallocation: p, NoCOW: true,
				Progress: func(d, n int64) { done, total = d, n }}))
			f := mustOpen(t, Options{Filename: name})
			data := map[Preallocation]int64{PreallocationOff: 0, PreallocationFalloc: 4096, PreallocationFull: size}[p]
			e, err := f.BlockStatus(bg, 0, size)
			must(t, err)
			if want := (block.Extent{Len: data, Status: statusData}); data > 0 && e != want {
				t.Errorf("%v: status %v, want %v", p, e, want)
			}
			if p == PreallocationOff {
				if e.Status != statusHole || allocated(t, f) != 0 {
					t.Errorf("%v: status %v, %d bytes allocated", p, e, allocated(t, f))
				}
			} else if allocated(t, f) < size || done != size || total != size {
				t.Errorf("%v: %d bytes allocated, progress %d of %d", p, allocated(t, f), done, total)
			}
			content := bytes.Repeat([]byte{1}, size)
			must(t, f.ReadAt(bg, content, 0)) // after the status: pages that were read count as data
			if f.Size() != size || fileLength(t, name) != size || !block.IsZero(content) {
				t.Errorf("%v: wrong length or content", p)
			}
		}
	}
}

func TestCreateErrors(t *testing.T) {
	dir := t.TempDir()
	for _, c := range []struct {
		o    CreateOptions
		text string
	}{
		{CreateOptions{}, "The 'file' block driver requires a file name"},
		{CreateOptions{Filename: dir + "/x", Size: -1}, "The image size cannot be negative: -1"},
		{CreateOptions{Filename: dir + "/x", Preallocation: PreallocationMetadata}, "Unsupported preallocation mode: metadata"},
		{CreateOptions{Filename: dir + "/no/x"}, "Could not create '" + dir + "/no/x': No such file or directory"},
		{CreateOptions{Filename: dir}, "Could not create '" + dir + "': Is a directory"},
		{CreateOptions{Filename: "/dev/null"}, "Could not create '/dev/null': it is not a regular file"},
		{CreateOptions{Filename: dir + "/big", Size: maxOffset}, "The image size is too large: 9223372036854775807"},
		{CreateOptions{Filename: dir + "/big", Size: 1 << 62}, "Could not resize file: File too large"},
	} {
		if err := Create(bg, c.o); err == nil || err.Error() != c.text {
			t.Errorf("%+v: %v, want %q", c.o, err, c.text)
		}
	}
}

func TestCreateEndsWithItsContext(t *testing.T) {
	name := filepath.Join(t.TempDir(), "new")
	ctx, cancel := context.WithCancel(bg)
	err := Create(ctx, CreateOptions{Filename: name, Size: 64 << 20, Preallocation: PreallocationFull,
		Progress: func(done, _ int64) {
			if done == 3<<20 {
				cancel()
			}
		}})
	if !errors.Is(err, context.Canceled) || fileLength(t, name) != 0 {
		t.Errorf("error %v, %d bytes left", err, fileLength(t, name))
	}
}

func TestCreateRespectsUsersOfTheImage(t *testing.T) {
	name := newImage(t, t.TempDir(), 8192)
	f := mustOpen(t, Options{Filename: name})
	must(t, f.SetPermissions(block.PermConsistentRead, block.PermAll&^block.PermResize))
	err := Create(bg, CreateOptions{Filename: name, Size: 4096})
	if block.KindOf(err) != block.KindPermission || fileLength(t, name) != 8192 {
		t.Errorf("error %v, the file is %d bytes long", err, fileLength(t, name))
	}
	must(t, f.SetPermissions(0, block.PermAll))
	must(t, Create(bg, CreateOptions{Filename: name, Size: 4096}))
}
