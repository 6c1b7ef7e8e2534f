// SPDX-License-Identifier: Apache-2.0

package file

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/blocktest"
)

// newImage makes a file of some length full of holes.
func newImage(t testing.TB, dir string, size int64) string {
	t.Helper()
	name := filepath.Join(dir, "disk.img")
	f, err := os.Create(name)
	if err == nil {
		err = errors.Join(f.Truncate(size), f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	return name
}

func mustOpen(t testing.TB, o Options) *File {
	t.Helper()
	f, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// tmpfs is a directory on a file system without ZERO_RANGE.
func tmpfs(t testing.TB) string {
	t.Helper()
	var st unix.Statfs_t
	if unix.Statfs("/dev/shm", &st) != nil || st.Type != unix.TMPFS_MAGIC {
		t.Skip("no tmpfs on /dev/shm")
	}
	dir, err := os.MkdirTemp("/dev/shm", "blkmirror-test-")
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func TestFilePassesTheSuite(t *testing.T) {
	for _, c := range []struct {
		name string
		dir  func(t testing.TB) string
		o    Options
	}{
		{"buffered", func(t testing.TB) string { return t.TempDir() }, Options{}},
		{"direct", func(t testing.TB) string { return t.TempDir() }, Options{Direct: true, AIO: AIONative}},
		{"tmpfs", tmpfs, Options{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := c.dir(t)
			blocktest.TestDriver(t, blocktest.Suite{
				Open: func(t *testing.T, size int64) block.Driver {
					c.o.Filename = newImage(t, dir, size)
					return mustOpen(t, c.o)
				},
				Reopen: func(t *testing.T) block.Driver { return mustOpen(t, c.o) },
			})
		})
	}
}

// A node that pads to 4 KiB on a file whose length is not a multiple of that uses the tail of the file.
func TestDirectTailWithLargeUnits(t *testing.T) {
	dir := t.TempDir()
	blocktest.TestDriver(t, blocktest.Suite{Open: func(t *testing.T, size int64) block.Driver {
		f := mustOpen(t, Options{Filename: newImage(t, dir, size), Direct: true})
		f.align, f.memAlign = 4096, 4096
		return f
	}})
	const size = 64<<10 + 1536
	f := mustOpen(t, Options{Filename: newImage(t, dir, size), Direct: true})
	f.align, f.memAlign = 4096, 4096
	n := blocktest.NewNode(t, block.NewGraph(), "disk", f, block.Options{})
	must(t, n.WriteAt(bg, []byte{1}, size-1, block.FUA))
	if length := fileLength(t, f.FileName()); length != size {
		t.Errorf("the padding made the file %d bytes long", length)
	}
}
