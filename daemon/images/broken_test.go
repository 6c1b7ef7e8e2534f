// SPDX-License-Identifier: Apache-2.0

package images

import (
	"bytes"
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/blocktest"
	"github.com/blkmirror/blkmirror/block/driver/qcow2"
)

// open opens an image in memory.
func open(g *block.Graph, mem *blocktest.Mem) (*block.Node, error) {
	var n *block.Node
	err := g.Change(context.Background(), func(tx *block.Tx) error {
		file, err := tx.AddNode(block.NodeConfig{Name: "file", DriverName: "file", Options: block.Options{Discard: true},
			Open: func([]*block.Edge) (block.Driver, error) { return mem, nil }})
		if err != nil {
			return err
		}
		n, err = tx.AddNode(block.NodeConfig{Name: "disk", DriverName: "qcow2", Options: block.Options{Discard: true},
			Children: []block.Child{{Name: "file", Node: file}},
			Open: func(edges []*block.Edge) (block.Driver, error) {
				return qcow2.Open(context.Background(), qcow2.Options{Unmap: true}, qcow2.Children{File: edges[0]})
			}})
		return err
	})
	return n, err
}

// TestBrokenMetadata: images whose metadata has wrong bits are refused or used as far as they can be, quickly and with little memory.
func TestBrokenMetadata(t *testing.T) {
	random := dice(t)
	rounds := 1500
	if interop() {
		rounds = 15000
	}
	dir := t.TempDir()
	var list [][]byte
	for _, options := range []string{"cluster_size=512", "cluster_size=512,compat=0.10", "cluster_size=16384,extended_l2=on",
		"cluster_size=4096,refcount_bits=1,lazy_refcounts=on"} {
		path := filepath.Join(dir, "image")
		run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-o", options, path, "300k")
		run(t, "qemu-io", "-f", "qcow2", "-c", "write -P 1 0 70k", "-c", "write -P 2 130k 1k", "-c", "write -P 3 250k 50k", path)
		if len(list)%2 == 0 {
			run(t, "qemu-img", "snapshot", "-c", "s", path)
			run(t, "qemu-img", "bitmap", "--add", "-f", "qcow2", path, "b")
		}
		b, err := os.ReadFile(path)
		must(t, err)
		list = append(list, b)
	}
	opened := 0
	for round := range rounds {
		image := bytes.Clone(list[random.IntN(len(list))])
		for range 1 + random.IntN(3) {
			at := random.IntN(len(image))
			switch random.IntN(4) {
			case 0:
				at = random.IntN(128) // the header
			case 1:
				at = random.IntN(8192)
			}
			image[at] ^= 1 << random.IntN(8)
			if random.IntN(4) == 0 {
				image[at] = byte(random.Uint32())
			}
		}
		if brokenImage(t, image, random) {
			opened++
		}
		if t.Failed() {
			t.Fatalf("in round %d", round)
		}
	}
	t.Logf("%d of %d images could be opened", opened, rounds)
	if opened < rounds/4 || opened == rounds {
		t.Errorf("%d of %d images could be opened", opened, rounds)
	}
}

// brokenImage does all kinds of things with an image.
func brokenImage(t *testing.T, image []byte, random *rand.Rand) (opened bool) {
	t.Helper()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	began := time.Now()
	ctx := context.Background()
	n, err := open(block.NewGraph(), blocktest.NewMemOf(image, blocktest.MemOptions{}))
	if err == nil {
		p := make([]byte, 3000)
		size := n.Size()
		for range 20 {
			at := random.Int64N(max(size-3000, 1))
			if random.IntN(2) == 0 {
				at = min(at, random.Int64N(300*kib))
			}
			switch random.IntN(6) {
			case 0:
				_ = n.WriteAt(ctx, p, at, 0)
			case 1:
				_ = n.Discard(ctx, at, min(size-at, 20*kib))
			case 2:
				_ = n.WriteZeroes(ctx, at, min(size-at, 20*kib), block.MayUnmap)
			case 3:
				_ = n.Flush(ctx)
			case 4:
				_, _ = n.BlockStatus(ctx, at, size-at)
			default:
				_ = n.ReadAt(ctx, p, at)
			}
		}
		if s, can := n.Driver().(interface{ Settle(context.Context) error }); can {
			_ = s.Settle(ctx)
		}
	}
	if took := time.Since(began); took > patience/3 {
		t.Errorf("it took %v", took)
	}
	runtime.ReadMemStats(&after)
	if used := after.TotalAlloc - before.TotalAlloc; used > 256*mib {
		t.Errorf("it took %d MiB of memory", used/mib)
	}
	return err == nil
}

// TestOneCluster: many requests meet in few clusters; each sector holds what the last of its own writer's requests made of it.
func TestOneCluster(t *testing.T) {
	dice(t)
	ctx := context.Background()
	for _, c := range []qcow2.CreateOptions{{}, {ExtendedL2: true}, {ClusterSize: 2 * mib}, {ClusterSize: 512, LazyRefcounts: true}} {
		g := block.NewGraph()
		mem := blocktest.NewMem(blocktest.MemOptions{})
		file := blocktest.NewNode(t, g, "create", mem, block.Options{})
		b := blocktest.Attach(t, g, file, "create", block.PermAll, block.PermAll)
		c.Size = 4 * mib
		must(t, qcow2.Create(ctx, c, &b.Edge, nil))
		blocktest.Detach(t, g, b)
		n, err := open(block.NewGraph(), mem)
		must(t, err)
		const writers, sectors = 16, 256
		check := func(err error) {
			if err != nil {
				t.Error(err)
			}
		}
		var all sync.WaitGroup
		for w := range writers {
			random := rand.New(rand.NewPCG(*seed, uint64(w)))
			all.Go(func() {
				var model [sectors]byte
				for i := range 400 {
					s := random.IntN(sectors)
					off := int64(s*writers+w) * sector
					p := bytes.Repeat([]byte{byte(i)}, sector)
					switch random.IntN(6) {
					case 0:
						check(n.WriteZeroes(ctx, off, sector, block.MayUnmap))
						model[s] = 0
					case 1:
						check(n.Flush(ctx))
					case 2:
						check(n.Discard(ctx, off, sector))
						check(n.ReadAt(ctx, p, off))
						model[s] = p[0]
					default:
						check(n.WriteAt(ctx, p, off, 0))
						model[s] = byte(i)
					}
					check(n.ReadAt(ctx, p, off))
					if !bytes.Equal(p, bytes.Repeat(model[s:s+1], sector)) {
						t.Errorf("offset %d: %x…, not %x", off, p[:4], model[s])
					}
				}
			})
		}
		all.Wait()
		must(t, n.Driver().(*qcow2.Disk).Settle(ctx))
		path := filepath.Join(folder(t), "image")
		must(t, os.WriteFile(path, mem.Bytes(), 0o600))
		inOrder(t, path, false)
	}
}
