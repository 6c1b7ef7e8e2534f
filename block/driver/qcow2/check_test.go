// SPDX-License-Identifier: Apache-2.0

package qcow2

import (
	"bytes"
	"context"
	"fmt"
	"testing"
)

// bytesReader is an image in memory.
type bytesReader []byte

func (b bytesReader) Size() int64 { return int64(len(b)) }

func (b bytesReader) ReadAt(_ context.Context, p []byte, off int64) error {
	if off < 0 || off+int64(len(p)) > int64(len(b)) {
		return fmt.Errorf("read %d+%d of %d bytes", off, len(p), len(b))
	}
	copy(p, b[off:])
	return nil
}

// consistent counts all references in an image that does not share clusters with snapshots, and compares them with the refcounts.
// It is written apart from the driver, but for the codecs of header and entries.
func consistent(image []byte) (leaks int, err error) {
	r := bytesReader(image)
	h, err := readHeader(context.Background(), r)
	if err != nil {
		return 0, err
	}
	g := newGeometry(h)
	padded := append(bytes.Clone(image), make([]byte, g.up(int64(len(image)))-int64(len(image))+g.cluster)...)
	refs := map[int64]int{}
	take := func(off, n int64) {
		for c := off >> g.clusterBits; c<<g.clusterBits < off+n; c++ {
			refs[c]++
		}
	}
	word := func(off int64) (v uint64) {
		for _, b := range padded[off : off+8] {
			v = v<<8 | uint64(b)
		}
		return v
	}
	inside := func(off int64) error {
		if off%g.cluster != 0 || off < 0 || off+g.cluster > int64(len(padded)) {
			return fmt.Errorf("a table or cluster at %#x", off)
		}
		return nil
	}
	take(0, 1)
	take(int64(h.l1Offset), max(int64(h.l1Size)*8, 1))
	take(int64(h.refTableOffset), int64(h.refTableClusters)<<g.clusterBits)
	var blocks []int64
	for i := range int64(h.refTableClusters) << g.clusterBits / 8 {
		off := int64(word(int64(h.refTableOffset) + i*8))
		blocks = append(blocks, off)
		if off != 0 {
			if err := inside(off); err != nil {
				return 0, fmt.Errorf("refcount block: %w", err)
			}
			take(off, 1)
		}
	}
	copied := map[int64]bool{}
	for i := range int64(h.l1Size) {
		l1 := word(int64(h.l1Offset) + i*8)
		table := int64(l1 & offsetMask)
		if table == 0 {
			continue
		}
		if err := inside(table); err != nil {
			return 0, fmt.Errorf("L2 table: %w", err)
		}
		if l1&flagCopied == 0 {
			return 0, fmt.Errorf("L1 entry %d without the copied flag", i)
		}
		take(table, 1)
		for at := int64(0); at < g.cluster; at += g.entry {
			guest := i<<g.l1Shift + at/g.entry<<g.clusterBits
			e, err := g.readEntry(padded[table+at:], guest)
			if err != nil {
				return 0, fmt.Errorf("entry for %#x: %w", guest, err)
			}
			switch {
			case e.host == none || g.external:
			case e.compressed:
				take(e.host, e.length)
			default:
				take(e.host, 1)
				copied[e.host>>g.clusterBits] = true
				if !e.copied {
					return 0, fmt.Errorf("entry for %#x without the copied flag", guest)
				}
			}
		}
	}
	rc := refcounts{order: h.refcountOrder, perBlock: g.cluster * 8 >> h.refcountOrder}
	count := func(c int64) int {
		if c/rc.perBlock >= int64(len(blocks)) || blocks[c/rc.perBlock] == 0 {
			return 0
		}
		return int(rc.value(padded[blocks[c/rc.perBlock]:], c%rc.perBlock))
	}
	for c, n := range refs {
		if copied[c] && n != 1 {
			return 0, fmt.Errorf("cluster %d has %d references", c, n)
		}
		if count(c) < n && h.incompatible&incompatDirty == 0 {
			return 0, fmt.Errorf("cluster %d has %d references and the refcount %d", c, n, count(c))
		}
	}
	for i, off := range blocks {
		if off == 0 {
			continue
		}
		for j := range rc.perBlock {
			if c := int64(i)*rc.perBlock + j; count(c) > refs[c] {
				leaks++
			}
		}
	}
	return leaks, nil
}

// check fails the test if the image is not consistent or has more leaks than allowed.
func check(t testing.TB, image []byte, leaksAllowed int) {
	t.Helper()
	leaks, err := consistent(image)
	if err != nil {
		t.Fatalf("the image is corrupt: %v", err)
	}
	if leaks > leaksAllowed {
		t.Fatalf("%d clusters are leaked", leaks)
	}
}
