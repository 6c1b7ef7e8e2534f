// SPDX-License-Identifier: Apache-2.0

package qcow2

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/blocktest"
)

// content is a disk with data, zeroes and what compresses well.
func content(size int) []byte {
	random := rand.New(rand.NewPCG(5, 5))
	b := make([]byte, size)
	for off := 0; off < size; off += 32 * kib {
		part := b[off:min(off+32*kib, size)]
		switch random.IntN(3) {
		case 0:
			for i := range part {
				part[i] = byte(random.Uint32())
			}
		case 1:
			copy(part, pattern(len(part), byte(off>>15)))
		}
	}
	return b
}

// TestQEMUsImages reads what qemu-img has made, writes to it, and has qemu-img look at the result.
func TestQEMUsImages(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	disk := content(3*mib + 512)
	for _, c := range []struct {
		name, options string
		compressed    bool
		snapshot      bool
	}{
		{name: "default"},
		{name: "v2", options: "compat=0.10"},
		{name: "v2 snapshot", options: "compat=0.10", snapshot: true},
		{name: "v2 compressed", options: "compat=0.10", compressed: true},
		{name: "512", options: "cluster_size=512"},
		{name: "512 compressed", options: "cluster_size=512", compressed: true},
		{name: "2M", options: "cluster_size=2M"},
		{name: "2M compressed", options: "cluster_size=2M", compressed: true},
		{name: "rc1", options: "refcount_bits=1"},
		{name: "rc2 snapshot", options: "refcount_bits=2", snapshot: true},
		{name: "rc64", options: "refcount_bits=64,cluster_size=4k", snapshot: true},
		{name: "zlib", compressed: true},
		{name: "zlib snapshot", compressed: true, snapshot: true},
		{name: "zstd", options: "compression_type=zstd", compressed: true},
		{name: "zstd 4k", options: "compression_type=zstd,cluster_size=4k", compressed: true},
		{name: "extended", options: "extended_l2=on"},
		{name: "extended snapshot", options: "extended_l2=on,cluster_size=16k", snapshot: true},
		{name: "extended compressed", options: "extended_l2=on", compressed: true},
		{name: "lazy", options: "lazy_refcounts=on"},
		{name: "metadata", options: "preallocation=metadata"},
		{name: "falloc", options: "preallocation=falloc"},
		{name: "full", options: "preallocation=full,extended_l2=on"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			must(t, os.WriteFile(filepath.Join(dir, "raw"), disk, 0o600))
			args := []string{"convert", "-f", "raw", "-O", "qcow2"}
			if c.compressed {
				args = append(args, "-c")
			}
			if c.options != "" {
				args = append(args, "-o", c.options)
			}
			qemuImg(t, dir, append(args, "raw", "image.qcow2")...)
			if c.snapshot {
				qemuImg(t, dir, "snapshot", "-c", "before", "image.qcow2")
			}
			made, err := os.ReadFile(filepath.Join(dir, "image.qcow2"))
			must(t, err)
			i := over(t, blocktest.NewMemOf(made, blocktest.MemOptions{}), nil, Options{Unmap: true}, nil)
			i.agrees(t, disk)
			i.status(t, disk)
			if n := len(i.disk.Info().Snapshots); c.snapshot != (n == 1) {
				t.Errorf("%d snapshots", n)
			}
			model := bytes.Clone(disk)
			i.scribble(t, model, chance(t, seed))
			must(t, i.disk.Settle(bg))
			i.compare(t, model, nil)
			if c.snapshot {
				must(t, os.WriteFile(filepath.Join(dir, "image.qcow2"), i.mem.Bytes(), 0o600))
				qemuImg(t, dir, "snapshot", "-a", "before", "image.qcow2")
				qemuImg(t, dir, "compare", "-f", "raw", "-F", "qcow2", "raw", "image.qcow2")
			}
		})
	}
}

func (i *image) agrees(t *testing.T, model []byte) {
	t.Helper()
	for _, step := range []int{len(model), 1000, 70000} {
		for off := 0; off < len(model); off += step {
			got := make([]byte, min(step, len(model)-off))
			must(t, i.node.ReadAt(bg, got, int64(off)))
			if !bytes.Equal(got, model[off:off+len(got)]) {
				t.Fatalf("read %d+%d: other bytes", off, len(got))
			}
		}
	}
}

// scribble writes all over a disk and its model.
func (i *image) scribble(t *testing.T, model []byte, random *rand.Rand) {
	t.Helper()
	for step := range 60 {
		n := 1 + random.Int64N(150*kib)
		off := random.Int64N(int64(len(model)) - n)
		switch random.IntN(5) {
		case 0:
			must(t, i.node.WriteZeroes(bg, off, n, block.Flags(random.IntN(2))*block.MayUnmap))
			clear(model[off : off+n])
		case 1:
			must(t, i.node.Discard(bg, off, n))
			must(t, i.node.ReadAt(bg, model[off:off+n], off))
		default:
			p := pattern(int(n), byte(step))
			must(t, i.node.WriteAt(bg, p, off, 0))
			copy(model[off:], p)
		}
		if random.IntN(10) == 0 {
			must(t, i.node.Flush(bg))
		}
	}
	i.agrees(t, model)
}

// TestOurImages has qemu-img look at images that were created here: what it tells of them, and that they are in order.
func TestOurImages(t *testing.T) {
	for name, c := range variants() {
		t.Run(name, func(t *testing.T) {
			c.Size = 5 * mib
			i := newImage(t, c, Options{}, nil)
			i.settled(t)
			i.compare(t, make([]byte, c.Size), nil)
			info := i.disk.Info()
			if info.Size != c.Size || info.ExtendedL2 != c.ExtendedL2 || info.LazyRefcounts != c.LazyRefcounts || info.DataFile != c.DataFileName ||
				info.DataFileRaw != c.DataFileRaw {
				t.Errorf("info %+v", info)
			}
		})
	}
	t.Run("info", func(t *testing.T) {
		i := newImage(t, CreateOptions{Size: mib, Compression: "zstd", BackingFile: "b", BackingFormat: "raw", ExtendedL2: true, RefcountBits: 8},
			Options{}, nil)
		dir := t.TempDir()
		must(t, os.WriteFile(filepath.Join(dir, "image.qcow2"), i.mem.Bytes(), 0o600))
		must(t, os.WriteFile(filepath.Join(dir, "b"), make([]byte, mib), 0o600))
		out := qemuImg(t, dir, "info", "image.qcow2")
		for _, want := range []string{"compression type: zstd", "backing file: b", "backing file format: raw", "extended l2: true", "refcount bits: 8"} {
			if !strings.Contains(out, want) {
				t.Errorf("no %q in:\n%s", want, out)
			}
		}
	})
}

// TestDirtyImage opens images that QEMU, or the driver itself, has not closed.
func TestDirtyImage(t *testing.T) {
	i := newImage(t, CreateOptions{Size: 4 * mib, LazyRefcounts: true, ClusterSize: 4096}, Options{}, nil)
	model := make([]byte, 4*mib)
	i.scribble(t, model, rand.New(rand.NewPCG(1, 1)))
	must(t, i.node.Flush(bg))
	if !i.disk.Info().Dirty {
		t.Fatal("not dirty while it is written to")
	}
	left := i.mem.Crash(4)
	if _, err := consistent(left.Bytes()); err != nil {
		t.Fatal(err)
	}
	found := over(t, left, nil, Options{}, nil)
	found.agrees(t, model)
	if !found.disk.Info().Dirty {
		t.Error("opening alone has changed the image")
	}
	must(t, found.node.WriteAt(bg, []byte("new"), 77, 0))
	copy(model[77:], "new")
	found.settled(t)
	if found.disk.Info().Dirty {
		t.Error("dirty when it is at rest")
	}
	found.compare(t, model, nil)
}
