// SPDX-License-Identifier: Apache-2.0

package file

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// spans walks Space over the whole image and joins neighbours.
func spans(t *testing.T, f *File) []int64 {
	t.Helper()
	var borders []int64 // where taken and untaken space change, beginning with untaken
	taken := false
	for off := int64(0); off < f.Size(); {
		n, now, err := f.Space(t.Context(), off, f.Size()-off)
		if err != nil || n < 1 || n > f.Size()-off {
			t.Fatalf("Space(%d) = %d, %v, %v", off, n, now, err)
		}
		if now != taken {
			borders, taken = append(borders, off), now
		}
		off += n
	}
	return borders
}

func TestSpaceTellsUnwrittenExtentsFromHoles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "image")
	image, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer image.Close()
	if err := image.Truncate(8 << 20); err != nil {
		t.Fatal(err)
	}
	if _, err := image.WriteAt(make([]byte, 1<<20), 1<<20); err != nil {
		t.Fatal(err)
	}
	if err := unix.Fallocate(int(image.Fd()), 0, 4<<20, 1<<20); err != nil {
		t.Skipf("the file system cannot allocate: %v", err)
	}
	f, err := Open(Options{Filename: path})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, _, err := f.Space(t.Context(), 0, 1); err != nil || f.noMap.Load() {
		t.Skipf("the file system does not tell its extents: %v", err)
	}
	if got, want := spans(t, f), []int64{1 << 20, 2 << 20, 4 << 20, 5 << 20}; !slices.Equal(got, want) {
		t.Errorf("space changes at %d, want %d", got, want)
	}
}

func TestForgiveLoss(t *testing.T) {
	path := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(path, make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := Open(Options{Filename: path})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	lost := error(unix.EIO)
	f.flushError.Store(&lost)
	if err := f.Flush(t.Context()); !errors.Is(err, unix.EIO) {
		t.Fatalf("flush after a loss: %v", err)
	}
	f.ForgiveLoss()
	if err := f.Flush(t.Context()); err != nil {
		t.Fatalf("flush after the loss was forgiven: %v", err)
	}
}
