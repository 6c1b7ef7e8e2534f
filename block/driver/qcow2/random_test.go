// SPDX-License-Identifier: Apache-2.0

package qcow2

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/blocktest"
)

// TestRandom gives the same requests to a disk and to a slice of bytes, and compares them. Sometimes the image is brought to rest
// and opened anew.
func TestRandom(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	for name, c := range variants() {
		for _, backed := range []int64{0, 300 * kib, 1300 * kib} {
			if backed > 0 && (c.Preallocation != "" && !c.ExtendedL2 || c.DataFileRaw) {
				continue
			}
			t.Run(fmt.Sprintf("%s/backing=%d", name, backed), func(t *testing.T) {
				randomly(t, chance(t, seed), c, backed)
			})
		}
	}
}

func randomly(t *testing.T, random *rand.Rand, c CreateOptions, backed int64) {
	c.Size = mib + 512
	if c.ClusterSize > mib {
		c.Size *= 5
	}
	model := make([]byte, c.Size)
	var base *block.Node
	if backed > 0 {
		content := pattern(int(backed), 77)
		clear(content[100*kib : 150*kib])
		copy(model, content)
		base = blocktest.NewNode(t, block.NewGraph(), "base", blocktest.NewMemOf(content, blocktest.MemOptions{}), block.Options{})
		c.BackingFile, c.BackingFormat = "base", "raw"
	}
	small := int64(2048)
	o := Options{Unmap: random.IntN(2) == 0, DiscardNoUnref: c.Version != 2 && random.IntN(3) == 0, L2CacheSize: &small}
	i := newImage(t, c, o, base)
	read := func(off, n int64) {
		t.Helper()
		got := bytes.Repeat([]byte{0xa5}, int(n))
		must(t, i.node.ReadAt(bg, got, off))
		if !bytes.Equal(got, model[off:off+n]) {
			for at := range got {
				if got[at] != model[off+int64(at)] {
					t.Fatalf("read %d+%d: byte %d is %#x, not %#x", off, n, off+int64(at), got[at], model[off+int64(at)])
				}
			}
		}
	}
	if backed == 0 || c.Preallocation == "" {
		read(0, c.Size)
	}
	for step := range 250 {
		n := 1 + random.Int64N(100*kib)
		off := random.Int64N(int64(len(model)) - n)
		if random.IntN(2) == 0 {
			off, n = off&^4095, (n+4095)&^4095
			n = min(n, int64(len(model))-off)
		}
		switch random.IntN(10) {
		default:
			p := pattern(int(n), byte(step))
			must(t, i.node.WriteAt(bg, p, off, block.Flags(random.IntN(20)/19)*block.FUA))
			copy(model[off:], p)
		case 0, 1:
			flags := block.Flags(random.IntN(2)) * block.MayUnmap
			if random.IntN(4) == 0 {
				err := i.node.WriteZeroes(bg, off, n, flags|block.NoFallback)
				if err != nil && block.KindOf(err) != block.KindNotSupported {
					t.Fatal(err)
				}
			}
			must(t, i.node.WriteZeroes(bg, off, n, flags))
			clear(model[off : off+n])
		case 2:
			must(t, i.node.Discard(bg, off, n))
			must(t, i.node.ReadAt(bg, model[off:off+n], off))
		case 3:
			must(t, i.node.Flush(bg))
		case 4:
			read(off, n)
		case 5:
			i.status(t, model)
		case 6:
			if random.IntN(8) == 0 {
				i.settled(t)
				data := i.dataMem
				if data != nil {
					data = data.Copy()
				}
				i = over(t, i.mem.Copy(), data, o, base)
			}
		case 7:
			if random.IntN(4) == 0 {
				size := (c.Size/2 + random.Int64N(c.Size)) &^ 511
				blocktest.Change(t, i.g, func(tx *block.Tx) error { return tx.Resize(bg, i.node, size) })
				model = append(model[:min(size, int64(len(model)))], make([]byte, max(0, size-int64(len(model))))...)
			}
		}
	}
	read(0, int64(len(model)))
	i.settled(t)
	if c.DataFileRaw {
		if !bytes.Equal(i.dataMem.Bytes()[:len(model)], model) {
			t.Error("the data file is not the disk")
		}
	}
	i.compare(t, model, base)
}

// compare has qemu-img check the image and compare it with what it should read as.
func (i *image) compare(t *testing.T, model []byte, base *block.Node) {
	t.Helper()
	files := map[string][]byte{"image.qcow2": i.mem.Bytes(), "raw": model}
	if base != nil {
		files["base"] = base.Driver().(*blocktest.Mem).Bytes()
	}
	if i.dataMem != nil {
		files["data"] = i.dataMem.Bytes()
	}
	dir := t.TempDir()
	for name, content := range files {
		must(t, os.WriteFile(filepath.Join(dir, name), content, 0o600))
	}
	qemuImg(t, dir, "check", "-f", "qcow2", "image.qcow2")
	qemuImg(t, dir, "compare", "-f", "raw", "-F", "qcow2", "raw", "image.qcow2")
}

// status walks the disk: what is said to be zero is.
func (i *image) status(t *testing.T, model []byte) {
	t.Helper()
	for off := int64(0); off < i.node.Size(); {
		e, err := i.node.BlockStatus(bg, off, i.node.Size()-off)
		must(t, err)
		if e.Len < 1 || e.Len > i.node.Size()-off {
			t.Fatalf("status at %d: %d bytes", off, e.Len)
		}
		if e.Status&block.StatusZero != 0 && !block.IsZero(model[off:off+e.Len]) {
			t.Fatalf("status at %d: zero for %d bytes", off, e.Len)
		}
		off += e.Len
	}
}
