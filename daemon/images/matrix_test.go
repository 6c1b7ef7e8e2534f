// SPDX-License-Identifier: Apache-2.0

package images

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
)

const (
	kib = 1 << 10
	mib = 1 << 20
)

// dimension is something in which images differ, with its values: the first is the usual one, and those from rare on are left to
// `make interop`.
type dimension struct {
	name   string
	values []string
	rare   int
}

const (
	maker = iota
	compat
	clusterSize
	refcountBits
	extendedL2
	lazyRefcounts
	preallocation
	compression
	dataFile
	backing
	snapshot
)

func dimensions() []dimension {
	return []dimension{
		maker:         {"maker", append(peers(), "daemon"), 3},
		compat:        {"compat", []string{"1.1", "0.10"}, 2},
		clusterSize:   {"cluster_size", []string{"65536", "512", "4096", "2097152", "16384", "1024", "2048", "8192", "32768", "131072", "1048576"}, 5},
		refcountBits:  {"refcount_bits", []string{"16", "1", "64", "2", "4", "8", "32"}, 3},
		extendedL2:    {"extended_l2", []string{"off", "on"}, 2},
		lazyRefcounts: {"lazy_refcounts", []string{"off", "on"}, 2},
		preallocation: {"preallocation", []string{"off", "metadata", "falloc", "full"}, 3},
		compression:   {"compressed", []string{"no", "zlib", "zstd"}, 3},
		dataFile:      {"data_file", []string{"no", "yes", "raw"}, 3},
		backing:       {"backing", []string{"no", "raw", "qcow2", "raw short", "qcow2 long", "qcow2 short", "raw long"}, 5},
		snapshot:      {"snapshot", []string{"no", "yes"}, 2},
	}
}

// variant is a value of each dimension.
type variant []string

// possible says whether the format, or the program that is to make the image, takes these options together.
func (v variant) possible() bool {
	old, external := v[compat] == "0.10", v[dataFile] != "no"
	switch {
	case old && (v[refcountBits] != "16" || v[extendedL2] == "on" || v[lazyRefcounts] == "on" || v[compression] == "zstd" || external),
		v[extendedL2] == "on" && (len(v[clusterSize]) < 5),
		v[compression] != "no" && (v[maker] == "daemon" || external),
		v[snapshot] == "yes" && (v[refcountBits] == "1" || external),
		v[snapshot] == "yes" && v[compression] != "no" && len(v[refcountBits]) == 1 && v[refcountBits] != "8", // many in one cluster
		v[backing] != "no" && (v[dataFile] == "raw" || v[preallocation] != "off" && v[extendedL2] == "off"),
		v[dataFile] == "raw" && v[preallocation] == "off",
		v[preallocation] != "off" && v[compression] != "no":
		return false
	}
	return true
}

func (v variant) String() string {
	var parts []string
	for i, d := range dimensions() {
		if i == maker || v[i] != d.values[0] {
			parts = append(parts, d.name+"="+v[i])
		}
	}
	return strings.ReplaceAll(strings.Join(parts, ","), " ", "-")
}

// pairwise chooses variants until every possible pair of values is in one of them.
func pairwise(random *rand.Rand, all []dimension) (list []variant) {
	type pair struct{ i, a, j, b int }
	missing := map[pair]bool{}
	for i := range all {
		for j := range i {
			for a := range all[i].values {
				for b := range all[j].values {
					missing[pair{i, a, j, b}] = true
				}
			}
		}
	}
	for tries := 0; len(missing) > 0 && tries < 40; {
		var best variant
		var covers []pair
		for range 60 {
			at := make([]int, len(all))
			v := make(variant, len(all))
			for i, d := range all {
				if random.IntN(3) > 0 {
					at[i] = random.IntN(len(d.values))
				}
				v[i] = d.values[at[i]]
			}
			if !v.possible() {
				continue
			}
			var found []pair
			for i := range all {
				for j := range i {
					if p := (pair{i, at[i], j, at[j]}); missing[p] {
						found = append(found, p)
					}
				}
			}
			if len(found) > len(covers) {
				best, covers = v, found
			}
		}
		if len(covers) == 0 { // what is left may be impossible
			tries++
			continue
		}
		for _, p := range covers {
			delete(missing, p)
		}
		list = append(list, best)
	}
	return list
}

// TestMatrix: images with all kinds of options are read, written and left in order.
func TestMatrix(t *testing.T) {
	random := dice(t)
	all, rounds := dimensions(), 2
	if !interop() {
		rounds = 1
		for i := range all {
			all[i].values = all[i].values[:min(len(all[i].values), all[i].rare)]
		}
	}
	dir := folder(t)
	d := start(t, dir)
	for range rounds {
		for _, v := range pairwise(random, all) {
			passed := t.Run(v.String(), func(t *testing.T) { (&matrixCase{t: t, d: d, v: v, random: random}).run() })
			if d.t = t; !passed { // its nodes may still be there
				d.stop()
				d = start(t, dir)
			}
			entries, err := os.ReadDir(dir)
			must(t, err)
			for _, e := range entries {
				must(t, os.Remove(d.path(e.Name())))
			}
		}
	}
}

// matrixCase is an image on its way.
type matrixCase struct {
	t      *testing.T
	d      *daemon
	v      variant
	random *rand.Rand
	model  []byte
}

func (c *matrixCase) run() {
	t, d := c.t, c.d
	d.t = t
	size := 1*mib + 7*sector
	if len(c.v[clusterSize]) > 6 { // of a megabyte and more
		size = 5*mib + 3*sector
	}
	c.model = c.disk(size)
	first := slices.Clone(c.model)
	if c.v[maker] == "daemon" {
		c.createHere()
	} else {
		c.createThere()
	}
	if c.v[snapshot] == "yes" {
		run(t, "qemu-img", "snapshot", "-c", "before", d.path("image"))
	}
	d.qcow2("image", nil)
	d.export("image")
	same(t, "as made", d.read("image"), first)
	readElsewhere(t, d.path("image"), first)
	c.scribble()
	d.close("image")
	inOrder(t, d.path("image"), false)
	holds(t, d.path("image"), c.model)
	readElsewhere(t, d.path("image"), c.model)
	if c.v[snapshot] == "yes" {
		run(t, "qemu-img", "snapshot", "-a", "before", d.path("image"))
		holds(t, d.path("image"), first)
		inOrder(t, d.path("image"), false)
	}
}

// disk is a disk with data, zeroes, and data that compresses well.
func (c *matrixCase) disk(size int) []byte {
	b := make([]byte, size)
	for off := 0; off < size; off += 24 * kib {
		part := b[off:min(off+24*kib, size)]
		switch c.random.IntN(3) {
		case 0:
			for i := range part {
				part[i] = byte(c.random.Uint32())
			}
		case 1:
			for i := range part {
				part[i] = byte(off>>12 + i/300)
			}
		}
	}
	return b
}

// base makes the backing file, of which the image differs here and there, and returns its format.
func (c *matrixCase) base() (format string) {
	format, length, _ := strings.Cut(c.v[backing], " ")
	content := slices.Clone(c.model)
	for range 10 {
		at := c.random.IntN(len(content) - 20000)
		for i := range 20000 {
			content[at+i] ^= 0x5a
		}
	}
	switch length {
	case "short":
		content = content[:len(content)/2/sector*sector]
	case "long":
		content = append(content, slices.Repeat([]byte("beyond the end  "), 10000)...)
	}
	if err := os.WriteFile(c.d.path("base"), content, 0o600); err != nil {
		c.t.Fatal(err)
	}
	if format == "qcow2" {
		must(c.t, os.Rename(c.d.path("base"), c.d.path("base.raw")))
		run(c.t, "qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", c.d.path("base.raw"), c.d.path("base"))
	}
	return format
}

// createThere has qemu-img make the image.
func (c *matrixCase) createThere() {
	v, d := c.v, c.d
	must(c.t, os.WriteFile(d.path("source"), c.model, 0o600))
	a := []string{"convert", "-f", "raw", "-O", "qcow2"}
	var options []string
	for _, i := range []int{compat, clusterSize, refcountBits, extendedL2, lazyRefcounts, preallocation} {
		if all := dimensions()[i]; v[i] != all.values[0] {
			options = append(options, all.name+"="+v[i])
		}
	}
	if v[compression] != "no" {
		a = append(a, "-c")
		if v[compression] == "zstd" {
			options = append(options, "compression_type=zstd")
		}
	}
	if v[dataFile] != "no" {
		options = append(options, "data_file="+d.path("image.data"))
		if v[dataFile] == "raw" {
			options = append(options, "data_file_raw=on")
		}
	}
	if len(options) > 0 {
		a = append(a, "-o", strings.Join(options, ","))
	}
	if v[backing] != "no" {
		a = append(a, "-F", c.base(), "-B", d.path("base"))
	}
	run(c.t, v[maker], append(a, d.path("source"), d.path("image"))...)
}

// createHere has the daemon make the image, and writes what it is to hold.
func (c *matrixCase) createHere() {
	v, d := c.v, c.d
	var cluster, bits int64
	_, err := fmt.Sscan(v[clusterSize]+" "+v[refcountBits], &cluster, &bits)
	must(c.t, err)
	o := args{"size": len(c.model), "cluster-size": cluster, "refcount-bits": bits, "extended-l2": v[extendedL2] == "on",
		"lazy-refcounts": v[lazyRefcounts] == "on", "preallocation": v[preallocation]}
	if v[compat] == "0.10" {
		o["version"] = "v2"
	}
	if v[dataFile] != "no" {
		o["data-file"], o["data-file-raw"] = true, v[dataFile] == "raw"
	}
	if v[backing] != "no" {
		o["backing-fmt"], o["backing-file"] = c.base(), d.path("base")
	}
	d.create("image", o)
	inOrder(c.t, d.path("image"), false)
	d.qcow2("image", nil)
	d.export("image")
	g := d.connect("image")
	defer g.Close()
	must(c.t, g.WriteAt(c.t.Context(), c.model, 0, 0))
	d.close("image")
}

// scribble writes all over the disk and its model.
func (c *matrixCase) scribble() {
	ctx := c.t.Context()
	g := c.d.connect("image")
	defer g.Close()
	for step := range 40 {
		n := 1 + c.random.IntN(100*kib)
		if step%3 == 0 {
			n = (n + 4095) &^ 4095
		}
		at := c.random.IntN(len(c.model) - n)
		part := c.model[at : at+n]
		switch c.random.IntN(5) {
		case 0:
			must(c.t, g.Zero(ctx, uint64(at), uint32(n), 0))
			clear(part)
		case 1:
			must(c.t, g.Trim(ctx, uint64(at), uint32(n), 0))
			must(c.t, g.ReadAt(ctx, part, uint64(at)))
		default:
			for i := range part {
				part[i] = byte(step + i/100)
			}
			must(c.t, g.WriteAt(ctx, part, uint64(at), 0))
		}
		if c.random.IntN(10) == 0 {
			must(c.t, g.Flush(ctx))
		}
	}
	same(c.t, "as written", c.d.read("image"), c.model)
}
