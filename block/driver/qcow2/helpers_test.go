// SPDX-License-Identifier: Apache-2.0

package qcow2

import (
	"context"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/blocktest"
)

var bg = context.Background()

const (
	kib = 1 << 10
	mib = 1 << 20
)

// image is a disk under test with everything below it.
type image struct {
	g       *block.Graph
	mem     *blocktest.Mem // of the image
	dataMem *blocktest.Mem // of the data file
	file    *block.Node
	data    *block.Node
	backing *block.Node
	node    *block.Node
	disk    *Disk
	options Options
}

// edge makes an edge to a node for the length of the test.
func edge(t testing.TB, g *block.Graph, n *block.Node) *block.Edge {
	t.Helper()
	b := blocktest.Attach(t, g, n, "test", 0, block.PermAll)
	return &b.Edge
}

// newImage creates an image in memory and opens it.
func newImage(t testing.TB, c CreateOptions, o Options, backing *block.Node) *image {
	t.Helper()
	i := &image{g: block.NewGraph(), mem: blocktest.NewMem(blocktest.MemOptions{}), options: o, backing: backing}
	i.file = blocktest.NewNode(t, i.g, "file", i.mem, block.Options{Discard: true})
	var data *block.Edge
	if c.DataFileName != "" {
		i.dataMem = blocktest.NewMem(blocktest.MemOptions{})
		i.data = blocktest.NewNode(t, i.g, "data", i.dataMem, block.Options{Discard: true})
		b := blocktest.Attach(t, i.g, i.data, "create", 0, block.PermAll)
		defer blocktest.Detach(t, i.g, b)
		data = &b.Edge
	}
	b := blocktest.Attach(t, i.g, i.file, "create", block.PermAll, block.PermAll)
	if err := Create(bg, c, &b.Edge, data); err != nil {
		t.Fatalf("create %+v: %v", c, err)
	}
	blocktest.Detach(t, i.g, b)
	i.open(t)
	return i
}

// over opens the image in a disk.
func over(t testing.TB, mem, dataMem *blocktest.Mem, o Options, backing *block.Node) *image {
	t.Helper()
	i := &image{g: block.NewGraph(), mem: mem, dataMem: dataMem, options: o, backing: backing}
	i.file = blocktest.NewNode(t, i.g, "file", mem, block.Options{Discard: true})
	if dataMem != nil {
		i.data = blocktest.NewNode(t, i.g, "data", dataMem, block.Options{Discard: true})
	}
	i.open(t)
	return i
}

func (i *image) open(t testing.TB) {
	t.Helper()
	children := []block.Child{{Name: "file", Node: i.file}}
	if i.data != nil {
		children = append(children, block.Child{Name: "data-file", Node: i.data})
	}
	i.node = blocktest.NewParent(t, i.g, "disk", block.Options{Discard: true, ReadOnly: i.options.ReadOnly}, children,
		func(edges []*block.Edge) (block.Driver, error) {
			c := Children{File: edges[0]}
			if i.data != nil {
				c.Data = edges[1]
			}
			if i.backing != nil { // of another graph
				c.Backing = edge(t, block.NewGraph(), i.backing)
			}
			d, err := Open(bg, i.options, c)
			i.disk = d
			return d, err
		})
}

// settled brings the image to rest and checks it.
func (i *image) settled(t testing.TB) {
	t.Helper()
	if err := i.disk.Settle(bg); err != nil {
		t.Fatalf("settle: %v", err)
	}
	check(t, i.mem.Bytes(), 0)
}

// qemuImg runs qemu-img in a folder, or skips the test: the one of the system in $PEER_ROOT, which must share the folder of
// temporary files with this one, or else the one on PATH.
func qemuImg(t testing.TB, dir string, args ...string) string {
	t.Helper()
	command := append([]string{"qemu-img"}, args...)
	if root := os.Getenv("PEER_ROOT"); root != "" {
		command = append([]string{"chroot", root, "sh", "-c", `cd "$1" && shift && exec "$@"`, "sh", dir}, command...)
	}
	if _, err := exec.LookPath(command[0]); err != nil {
		t.Skip("qemu-img is not installed")
	}
	c := exec.Command(command[0], command[1:]...)
	c.Dir = dir
	out, err := c.CombinedOutput()
	if err != nil {
		t.Fatalf("qemu-img %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// chance is a source of chance that differs from test to test and is the same again for the same seed.
func chance(t testing.TB, seed uint64) *rand.Rand {
	h := fnv.New64a()
	_, _ = h.Write([]byte(t.Name()))
	return rand.New(rand.NewPCG(seed, h.Sum64()))
}

func pattern(n int, seed byte) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i%251) ^ seed | 1
	}
	return b
}

// variants are images whose code differs.
func variants() map[string]CreateOptions {
	m := map[string]CreateOptions{
		"default":    {},
		"v2":         {Version: 2},
		"512":        {ClusterSize: 512},
		"4k-64bit":   {ClusterSize: 4096, RefcountBits: 64},
		"2M":         {ClusterSize: 2 << 20},
		"extended":   {ExtendedL2: true},
		"extended16": {ExtendedL2: true, ClusterSize: 16 << 10},
		"lazy":       {LazyRefcounts: true, ClusterSize: 4096},
		"data":       {DataFileName: "data", ClusterSize: 4096},
		"data-ext":   {DataFileName: "data", ExtendedL2: true, ClusterSize: 16384},
		"data-raw":   {DataFileName: "data", DataFileRaw: true, ClusterSize: 4096},
		"metadata":   {Preallocation: PreallocationMetadata},
		"falloc":     {Preallocation: PreallocationFalloc, ClusterSize: 4096},
		"full":       {Preallocation: PreallocationFull, ExtendedL2: true},
	}
	for _, bits := range []int{1, 2, 4, 8, 32} {
		m[fmt.Sprintf("rc%d", bits)] = CreateOptions{ClusterSize: 1024, RefcountBits: bits}
	}
	return m
}
