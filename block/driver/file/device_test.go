// SPDX-License-Identifier: Apache-2.0

package file

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/blocktest"
)

// loopDevice makes a block device of a new file.
func loopDevice(t *testing.T, size int64, args ...string) (device, image string) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("loop devices need root")
	}
	image = filepath.Join(t.TempDir(), "loop.img")
	must(t, os.WriteFile(image, nil, 0o600))
	must(t, os.Truncate(image, size))
	out, err := exec.Command("losetup", append(args, "--find", "--show", image)...).Output()
	if err != nil {
		t.Skipf("losetup does not work here: %v", err)
	}
	device = strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "--detach", device).CombinedOutput(); err != nil {
			t.Errorf("losetup: %v, %s", err, out)
		}
	})
	return device, image
}

func TestDevicePassesTheSuite(t *testing.T) {
	for name, o := range map[string]Options{"buffered": {}, "direct": {Direct: true}} {
		t.Run(name, func(t *testing.T) {
			blocktest.TestDriver(t, blocktest.Suite{Open: func(t *testing.T, size int64) block.Driver {
				o.Filename, _ = loopDevice(t, size)
				o.HostDevice = true
				return unresizable{mustOpen(t, o)}
			}})
		})
	}
}

// unresizable hides Resize, which a device has for taking note only.
type unresizable struct{ *File }

func (unresizable) Resize() {}

func TestDevice(t *testing.T) {
	const size = 8 << 20
	device, image := loopDevice(t, size)
	if _, err := Open(Options{Filename: device}); err == nil ||
		err.Error() != "'file' driver requires '"+device+"' to be a regular file" {
		t.Errorf("as a file: %v", err)
	}
	f := mustOpen(t, Options{Filename: device, HostDevice: true})
	backing := mustOpen(t, Options{Filename: image, ReadOnly: true, Locking: LockingOff})
	if f.Size() != size {
		t.Fatalf("size %d", f.Size())
	}
	data := bytes.Repeat([]byte{1}, size)
	fill := func() {
		t.Helper()
		must(t, f.WriteAt(bg, data, 0, block.FUA))
		if got := allocated(t, backing); got < size {
			t.Fatalf("%d bytes allocated after filling", got)
		}
	}
	zero := func() {
		t.Helper()
		got := bytes.Clone(data)
		must(t, f.ReadAt(bg, got, 0))
		if !block.IsZero(got) {
			t.Error("not zero")
		}
	}
	fill()
	must(t, f.WriteZeroes(bg, 0, size, block.MayUnmap|block.FUA))
	zero()
	if got := allocated(t, backing); got > 4096 {
		t.Errorf("zeroes that may unmap: %d bytes allocated", got)
	}
	fill()
	must(t, f.WriteZeroes(bg, 0, size, block.FUA))
	zero()
	fill()
	must(t, f.Discard(bg, 0, size))
	must(t, f.Flush(bg))
	if got := allocated(t, backing); got > 4096 {
		t.Errorf("discard: %d bytes allocated", got)
	}
	if err := f.WriteZeroes(bg, 0, size, block.NoFallback); err != block.NotSupported {
		t.Errorf("zeroes that may not be written: %v", err)
	}
	if err := f.WriteZeroes(bg, 100, 100, 0); err != block.NotSupported || f.noZeroOut.Load() {
		t.Errorf("zeroes that are not whole sectors: %v", err)
	}
	if e, err := f.BlockStatus(bg, 0, size); err != nil || e != (block.Extent{Len: size, Status: statusData}) {
		t.Errorf("status %v, %v", e, err)
	}
	if err := f.Resize(bg, 2*size); err == nil || err.Error() != "Cannot resize device files" {
		t.Errorf("resize: %v", err)
	}
	// The device grows outside, and a resize to that length takes note.
	must(t, os.Truncate(image, 2*size))
	if out, err := exec.Command("losetup", "--set-capacity", device).CombinedOutput(); err != nil {
		t.Fatalf("losetup: %v, %s", err, out)
	}
	must(t, f.Resize(bg, 2*size))
	if f.Size() != 2*size {
		t.Errorf("size %d after growing", f.Size())
	}
	must(t, f.WriteAt(bg, data[:4096], 2*size-4096, 0))
}

func TestDeviceWithLargeSectors(t *testing.T) {
	device, _ := loopDevice(t, 1<<20, "--sector-size", "4096")
	f := mustOpen(t, Options{Filename: device, HostDevice: true, Direct: true})
	if l := f.Limits(); l.RequestAlign != 4096 {
		t.Fatalf("limits %+v", l)
	}
	g := block.NewGraph()
	n := blocktest.NewNode(t, g, "d", f, block.Options{})
	must(t, n.WriteAt(bg, []byte("hello"), 5000, block.FUA))
	must(t, n.WriteZeroes(bg, 5001, 3, 0))
	got := make([]byte, 5)
	must(t, n.ReadAt(bg, got, 5000))
	if string(got) != "h\x00\x00\x00o" {
		t.Errorf("read %q", got)
	}
}

func TestCharacterDevice(t *testing.T) {
	f := mustOpen(t, Options{Filename: "/dev/zero", HostDevice: true, ReadOnly: true})
	if f.Size() != 0 {
		t.Errorf("size %d", f.Size())
	}
	must(t, f.Flush(bg))
}
