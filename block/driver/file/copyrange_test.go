// SPDX-License-Identifier: Apache-2.0

package file

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/blocktest"
)

// mountXFS is a folder on a new file system that can share extents.
func mountXFS(t *testing.T) string {
	t.Helper()
	device, _ := loopDevice(t, 320<<20)
	if out, err := exec.Command("mkfs.xfs", "-q", "-m", "reflink=1", device).CombinedOutput(); err != nil {
		t.Skipf("mkfs.xfs does not work here: %v, %s", err, out)
	}
	dir := t.TempDir()
	if err := unix.Mount(device, dir, "xfs", 0, ""); err != nil {
		t.Skipf("XFS cannot be mounted here: %v", err)
	}
	t.Cleanup(func() { must(t, unix.Unmount(dir, 0)) })
	return dir
}

func noise(n int) []byte {
	p := make([]byte, n)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range p {
		p[i] = byte(r.Uint32())
	}
	return p
}

// twoImages are a source with data and an empty target of its length.
func twoImages(t *testing.T, dir string, data []byte, o Options) (source, target *File) {
	t.Helper()
	from, to := filepath.Join(dir, "source"), filepath.Join(dir, "target")
	must(t, os.WriteFile(from, data, 0o600))
	must(t, os.WriteFile(to, nil, 0o600))
	must(t, os.Truncate(to, int64(len(data))))
	o.Filename = from
	source = mustOpen(t, o)
	o.Filename = to
	return source, mustOpen(t, o)
}

// copyAll copies a whole range, however many calls it takes, and says how.
func copyAll(t *testing.T, source, target *File, fromOff, off, n int64) (hows []block.Offload) {
	t.Helper()
	for n > 0 {
		k, how, err := target.CopyRange(t.Context(), source, fromOff, off, n, true)
		if err != nil || k < 1 || k > n {
			t.Fatalf("CopyRange(%d, %d, %d) = %d, %v, %v", fromOff, off, n, k, how, err)
		}
		hows = append(hows, how)
		fromOff, off, n = fromOff+k, off+k, n-k
	}
	return hows
}

func TestCopyRange(t *testing.T) {
	data := noise(4<<20 + 512)
	source, target := twoImages(t, t.TempDir(), data, Options{})
	if _, _, err := target.CopyRange(t.Context(), source, 0, 0, 512, true); errors.Is(err, block.NotSupported) {
		t.Skip("the file system does not tell where its files take space, or the kernel does not copy there")
	} else if err != nil {
		t.Fatal(err)
	}
	copyAll(t, source, target, 512, 8192, 5000)
	copyAll(t, source, target, 1<<20+512, 1<<20+512, 3<<20)
	want := make([]byte, len(data))
	copy(want, data[:512])
	copy(want[8192:], data[512:5512])
	copy(want[1<<20+512:], data[1<<20+512:])
	got := make([]byte, len(data))
	if err := target.ReadAt(t.Context(), got, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the target is not what was copied: %v", err)
	}
	if _, _, err := target.CopyRange(t.Context(), source, 0, 1<<20+512, 4096, true); !errors.Is(err, errTaken) {
		t.Errorf("a copy to where the target takes space: %v", err)
	}
	must(t, unix.Fallocate(target.fd, 0, 64<<10, 64<<10))
	if k, _, err := target.CopyRange(t.Context(), source, 32<<10, 32<<10, 1<<20, true); err != nil || k > 32<<10 {
		t.Errorf("a copy up to what was allocated on purpose: %d bytes, %v", k, err)
	}
	if _, _, err := target.CopyRange(t.Context(), source, 64<<10, 64<<10, 4096, true); !errors.Is(err, errTaken) {
		t.Errorf("a copy to what was allocated on purpose: %v", err)
	}
}

func TestCopyRangeRefuses(t *testing.T) {
	dir := t.TempDir()
	source, target := twoImages(t, dir, noise(1<<20), Options{})
	if _, _, err := target.CopyRange(t.Context(), blocktest.NewMem(blocktest.MemOptions{Size: 1 << 20}), 0, 0, 4096, true); err != block.NotSupported {
		t.Errorf("from something else than a file: %v", err)
	}
	must(t, os.Truncate(filepath.Join(dir, "source"), 4096))
	if k, _, err := target.CopyRange(t.Context(), source, 4096, 4096, 4096, true); err == nil {
		t.Errorf("behind the end of the source: %d bytes", k)
	}
}

func TestClone(t *testing.T) {
	dir := mountXFS(t)
	for name, o := range map[string]Options{"buffered": {}, "direct": {Direct: true}} {
		t.Run(name, func(t *testing.T) {
			data := noise(8 << 20)
			source, target := twoImages(t, dir, data, o)
			must(t, source.Flush(t.Context()))
			for _, how := range copyAll(t, source, target, 0, 0, int64(len(data))) {
				if how != block.OffloadCloned {
					t.Errorf("extents are shared: %v", how)
				}
			}
			if !sharesExtents(t, target) {
				t.Error("the kernel says that the target's extents are its own")
			}
			b := block.GetBuffer(len(data))
			defer b.Release()
			if err := target.ReadAt(t.Context(), b.B, 0); err != nil || !bytes.Equal(b.B, data) {
				t.Errorf("the target is not what was copied: %v", err)
			}
			copy(b.B, "something else")
			must(t, target.WriteAt(t.Context(), b.B[:4096], 0, 0))
			if err := source.ReadAt(t.Context(), b.B, 0); err != nil || !bytes.Equal(b.B, data) {
				t.Errorf("a write to the target shows in the source: %v", err)
			}
			if o.Direct {
				if _, _, err := target.CopyRange(t.Context(), source, 512, 512, 512, true); err == nil {
					t.Error("with O_DIRECT a part of a block went through the page cache")
				}
			}
		})
	}
}

// sharesExtents says whether the first extent of an image is marked as shared.
func sharesExtents(t *testing.T, f *File) bool {
	t.Helper()
	const shared = 0x2000 // FIEMAP_EXTENT_SHARED
	m := fiemapOne{length: uint64(f.Size()), extents: 1}
	if err := ioctl(f.fd, fsIOCFiemap, unsafe.Pointer(&m)); err != nil {
		t.Fatal(err)
	}
	return m.mapped == 1 && m.extentFlags&shared != 0
}
