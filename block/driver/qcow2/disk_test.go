// SPDX-License-Identifier: Apache-2.0

package qcow2

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/blocktest"
)

// calls are the requests that reached the file, but for looks at its state.
func (i *image) calls() (list []string) {
	for _, c := range i.mem.Calls() {
		if c.Op != block.OpStatus {
			list = append(list, c.String())
		}
	}
	i.mem.ResetCalls()
	return list
}

// TestWritesAreFew holds the driver to what it costs: a write into unallocated space is one write to the file.
func TestWritesAreFew(t *testing.T) {
	base := blocktest.NewNode(t, block.NewGraph(), "base", blocktest.NewMemOf(pattern(2*mib, 3), blocktest.MemOptions{}), block.Options{})
	for _, c := range []struct {
		name    string
		create  CreateOptions
		backing *block.Node
		off, n  int64
		want    string
	}{
		{"1 MiB", CreateOptions{}, nil, 4 * mib, mib, "write 1048576"},
		{"unaligned 1 MiB", CreateOptions{}, nil, 4*mib + 512, mib, "write 1048576"},
		{"4 KiB", CreateOptions{}, nil, 4*mib + 8192, 4096, "write 4096"},
		{"4 KiB over data", CreateOptions{}, base, mib + 8192, 4096, "write 65536"},
		{"4 KiB behind the end of the backing node", CreateOptions{}, base, 3*mib + 8192, 4096, "write 4096"},
		{"1 MiB over data", CreateOptions{}, base, 512, mib, "write 512,write 65024,write 1048576"},
		{"subcluster", CreateOptions{ExtendedL2: true}, base, 2048 * 7, 2048, "write 2048"},
		{"in a subcluster", CreateOptions{ExtendedL2: true}, base, 2048*7 + 512, 512, "write 2048"},
		{"data file", CreateOptions{DataFileName: "d"}, nil, mib, mib, "write 1048576"},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.create.Size = 16 * mib
			i := newImage(t, c.create, Options{}, c.backing)
			must(t, i.node.WriteAt(bg, []byte{1}, 15*mib, 0)) // there is an L2 table, and the file has grown
			m := i.mem
			if i.dataMem != nil {
				m = i.dataMem
			}
			m.ResetCalls()
			must(t, i.node.WriteAt(bg, pattern(int(c.n), 1), c.off, 0))
			var writes []string
			for _, call := range m.Calls() {
				if call.Op == block.OpWrite || call.Op == block.OpZero {
					writes = append(writes, fmt.Sprintf("%s %d", call.Op, call.Len))
				}
			}
			if got := strings.Join(writes, ","); got != c.want {
				t.Errorf("%s, want %s", got, c.want)
			}
		})
	}
}

func TestReadsAreJoined(t *testing.T) {
	i := newImage(t, CreateOptions{Size: 16 * mib, ClusterSize: 4096}, Options{}, nil)
	must(t, i.node.WriteAt(bg, pattern(mib, 1), 0, 0))
	i.calls()
	must(t, i.node.ReadAt(bg, make([]byte, mib-100), 50))
	if calls := i.calls(); len(calls) != 1 {
		t.Errorf("calls %v", calls)
	}
}

// TestOrder shows the steps of a commit, and that a flush with nothing to write is one flush.
func TestOrder(t *testing.T) {
	i := newImage(t, CreateOptions{Size: 16 * mib}, Options{}, nil)
	must(t, i.node.WriteAt(bg, pattern(4096, 1), 0, 0))
	i.calls()
	must(t, i.node.Flush(bg))
	want := []string{
		"write 131072+65536", // the refcount block
		"flush 0+0",
		"write 262144+512", // of the L2 table
		"write 196608+512", // of the L1 table
		"flush 0+0",
	}
	if got := i.calls(); !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	must(t, i.node.WriteAt(bg, pattern(4096, 2), 0, 0))
	i.calls()
	must(t, i.node.Flush(bg))
	if got := i.calls(); !slices.Equal(got, []string{"flush 0+0"}) {
		t.Errorf("second flush: %v", got)
	}
}

func TestStatus(t *testing.T) {
	content := pattern(mib, 3)
	clear(content[512*kib : 640*kib])
	mem := blocktest.NewMem(blocktest.MemOptions{Size: mib})
	base := blocktest.NewNode(t, block.NewGraph(), "base", mem, block.Options{})
	must(t, base.WriteAt(bg, content[:512*kib], 0, 0))
	must(t, base.WriteAt(bg, content[640*kib:], 640*kib, 0))
	const dataHere, zeroHere = block.StatusData | block.StatusAllocated, block.StatusZero | block.StatusAllocated
	for _, c := range []struct {
		backing *block.Node
		want    []block.Extent
	}{
		{base, []block.Extent{{Len: 128 * kib, Status: dataHere}, {Len: 64 * kib, Status: zeroHere}, {Len: 320 * kib, Status: block.StatusData},
			{Len: 128 * kib, Status: block.StatusZero}, {Len: 384 * kib, Status: block.StatusData}, {Len: 3 * mib, Status: block.StatusZero}}},
		{nil, []block.Extent{{Len: 128 * kib, Status: dataHere}, {Len: 64 * kib, Status: zeroHere}, {Len: 4*mib - 192*kib, Status: block.StatusZero}}},
	} {
		i := newImage(t, CreateOptions{Size: 4 * mib}, Options{}, c.backing)
		must(t, i.node.WriteAt(bg, pattern(128*kib, 1), 0, 0))
		must(t, i.node.WriteZeroes(bg, 128*kib, 64*kib, block.MayUnmap))
		var got []block.Extent
		for off := int64(0); off < 4*mib; {
			e, err := i.node.BlockStatus(bg, off, 4*mib-off)
			must(t, err)
			if last := len(got) - 1; last >= 0 && got[last].Status == e.Status { // a backing node answers for itself
				got[last].Len += e.Len
			} else {
				got = append(got, e)
			}
			off += e.Len
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%v, want %v", got, c.want)
		}
	}
}

// TestNothingIsLostBesideEachOther has many small writers in the clusters of each other, over a backing node.
func TestNothingIsLostBesideEachOther(t *testing.T) {
	const size = 2 * mib
	model := pattern(size, 9)
	base := blocktest.NewNode(t, block.NewGraph(), "base", blocktest.NewMemOf(model, blocktest.MemOptions{}), block.Options{})
	for _, c := range []CreateOptions{{}, {ExtendedL2: true}, {Version: 2, ClusterSize: 4096}} {
		c.Size = size
		i := newImage(t, c, Options{}, base)
		want := bytes.Clone(model)
		var wg sync.WaitGroup
		for w := range 8 {
			wg.Go(func() {
				for at := w * 1000; at+1000 <= size; at += 8000 {
					p := bytes.Repeat([]byte{byte(w + 1)}, 1000)
					copy(want[at:], p)
					if err := i.node.WriteAt(bg, p, int64(at), 0); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		got := make([]byte, size)
		must(t, i.node.ReadAt(bg, got, 0))
		if !bytes.Equal(got, want) {
			t.Error("a write was lost")
		}
		i.settled(t)
	}
}

// TestReadersOfFreedClusters has reads under way in clusters that are freed and given to others meanwhile.
func TestReadersOfFreedClusters(t *testing.T) {
	i := newImage(t, CreateOptions{Size: mib}, Options{}, nil)
	must(t, i.node.WriteAt(bg, bytes.Repeat([]byte{1}, 64*kib), 0, block.FUA))
	arrived, goOn := make(chan struct{}), make(chan struct{})
	i.mem.SetHook(func(_ context.Context, c blocktest.Call) error {
		if c.Op == block.OpRead && c.Len == 64*kib {
			close(arrived)
			<-goOn
		}
		return nil
	})
	done := make(chan []byte)
	go func() {
		p := make([]byte, 64*kib)
		if err := i.node.ReadAt(bg, p, 0); err != nil {
			t.Error(err)
		}
		done <- p
	}()
	<-arrived
	i.mem.SetHook(nil)
	must(t, i.node.WriteZeroes(bg, 0, 64*kib, block.MayUnmap))
	for range 3 {
		must(t, i.node.Flush(bg))
	}
	must(t, i.node.WriteAt(bg, bytes.Repeat([]byte{2}, 64*kib), 512*kib, 0))
	close(goOn)
	if p := <-done; !block.IsZero(p) && !bytes.Equal(p, bytes.Repeat([]byte{1}, 64*kib)) {
		t.Errorf("read %#x, which was never there", p[0])
	}
	i.settled(t)
}

func TestPassesDiscards(t *testing.T) {
	for _, c := range []struct {
		o    Options
		want int64
	}{{Options{Unmap: true}, mib}, {Options{}, 0}, {Options{Unmap: true, PassDiscardRequest: new(bool)}, 0}, {Options{Unmap: true, DiscardNoUnref: true}, mib}} {
		i := newImage(t, CreateOptions{Size: 4 * mib}, c.o, nil)
		must(t, i.node.WriteAt(bg, pattern(2*mib, 1), 0, 0))
		must(t, i.node.Flush(bg))
		i.calls()
		must(t, i.node.Discard(bg, 0, mib))
		if n, _ := i.mem.Count(block.OpTrim); n > 0 && !c.o.DiscardNoUnref {
			t.Error("discarded before the tables are durable")
		}
		must(t, i.node.Flush(bg))
		if n, sum := i.mem.Count(block.OpTrim); sum != c.want || n > 1 {
			t.Errorf("%+v: %d bytes in %d discards reached the file, want %d", c.o, sum, n, c.want)
		}
		i.settled(t)
	}
}

// TestSpaceIsUsedAgain writes and discards for long: the file does not grow.
func TestSpaceIsUsedAgain(t *testing.T) {
	i := newImage(t, CreateOptions{Size: 16 * mib}, Options{}, nil)
	for range 20 {
		must(t, i.node.WriteAt(bg, pattern(8*mib, 1), 0, 0))
		must(t, i.node.Discard(bg, 0, 8*mib))
		must(t, i.node.Flush(bg))
	}
	i.settled(t)
	if size := i.mem.Size(); size > 18*mib {
		t.Errorf("the file has %d bytes", size)
	}
}

func TestCachesAreBounded(t *testing.T) {
	l2, entry, ref := int64(8*kib), int64(512), int64(4*kib)
	i := newImage(t, CreateOptions{Size: 256 * mib, ClusterSize: 1024}, Options{L2CacheSize: &l2, L2CacheEntrySize: &entry, RefcountCacheSize: &ref}, nil)
	for off := int64(0); off < 256*mib; off += 300 * kib {
		must(t, i.node.WriteAt(bg, []byte{1}, off, 0))
		if n := len(i.disk.maps.slices); n > 16 {
			t.Fatalf("%d slices", n)
		}
		if n := len(i.disk.refs.blocks); n > 4 {
			t.Fatalf("%d refcount blocks", n)
		}
	}
	for off := int64(0); off < 256*mib; off += 300 * kib {
		p := make([]byte, 2)
		must(t, i.node.ReadAt(bg, p, off))
		if p[0] != 1 || p[1] != 0 {
			t.Fatalf("read %v at %d", p, off)
		}
	}
	i.settled(t)
}

func TestChangeBackingFile(t *testing.T) {
	i := newImage(t, CreateOptions{Size: mib, BackingFile: "old", BackingFormat: "qcow2"}, Options{}, nil)
	for _, c := range [][2]string{{"a name that is longer", "raw"}, {"x", ""}, {"", ""}} {
		must(t, i.disk.ChangeBackingFile(bg, c[0], c[1]))
		info, err := Probe(bg, i.file)
		must(t, err)
		if info.BackingFile != c[0] || info.BackingFormat != c[1] || i.disk.Info().BackingFile != c[0] {
			t.Errorf("%q: %+v", c, info)
		}
	}
	err := i.disk.ChangeBackingFile(bg, strings.Repeat("x", 1024), "")
	if err == nil || block.KindOf(err) != block.KindInvalid {
		t.Errorf("long name: %v", err)
	}
	i.settled(t)
}

// TestHeaderIsPreserved changes what it must and keeps what it does not know.
func TestHeaderIsPreserved(t *testing.T) {
	i := newImage(t, CreateOptions{Size: mib}, Options{}, nil)
	h := i.disk.header.header
	h.setExtension(0x12345678, []byte("hello"))
	h.compatible |= 1 << 17
	h.autoclear |= 1 << 9
	h.length, h.unknown = 120, append(make([]byte, 7), "FUTURE!!"...)
	b, err := h.encode()
	must(t, err)
	must(t, i.file.WriteAt(bg, b, 0, 0))
	again := over(t, i.mem.Copy(), nil, Options{}, nil)
	must(t, again.node.WriteAt(bg, []byte{1}, 0, 0))
	must(t, again.disk.ChangeBackingFile(bg, "b", "raw"))
	got, err := readHeader(bg, again.file)
	must(t, err)
	if string(got.extension(0x12345678)) != "hello" || got.compatible != 1<<17 || got.autoclear != 0 || string(got.unknown[7:]) != "FUTURE!!" ||
		got.backingFile != "b" {
		t.Errorf("header %+v", got)
	}
}

func TestUnknownFeature(t *testing.T) {
	i := newImage(t, CreateOptions{Size: mib}, Options{}, nil)
	table := featureTable()
	table[1] = 40
	copy(table[2:48], append([]byte("time travel"), make([]byte, 35)...))
	h := i.disk.header.header
	h.setExtension(extFeatureNames, table)
	h.incompatible |= 1<<40 | 1<<41
	b, err := h.encode()
	must(t, err)
	must(t, i.file.WriteAt(bg, b, 0, 0))
	_, err = Probe(bg, i.file)
	if err == nil || err.Error() != "Unsupported qcow2 feature(s): time travel, Unknown incompatible feature: bit 41" {
		t.Error(err)
	}
}

// TestBrokenImages: whatever is wrong with an image is told when it is opened or used, and nothing is written to it.
func TestBrokenImages(t *testing.T) {
	be := binary.BigEndian
	const l1, table, refs = 3 * 65536, 65536, 2 * 65536
	for _, c := range []struct {
		name   string
		change func(b []byte)
		open   string // what Open says
		use    string // what a write of one byte at 0 says
	}{
		{"magic", func(b []byte) { b[0] = 0 }, "Image is not in qcow2 format", ""},
		{"version", func(b []byte) { b[7] = 4 }, "Unsupported qcow2 version 4", ""},
		{"cluster bits", func(b []byte) { b[23] = 22 }, "Unsupported cluster size: 2^22", ""},
		{"header length", func(b []byte) { be.PutUint32(b[100:], 101) }, "qcow2 header length 101 is invalid", ""},
		{"header too long", func(b []byte) { be.PutUint32(b[100:], 1<<31) }, "qcow2 header exceeds cluster size", ""},
		{"L1 too small", func(b []byte) { be.PutUint64(b[24:], 1<<40) }, "L1 table is too small", ""},
		{"absurd size", func(b []byte) { be.PutUint64(b[24:], 1<<63-512) }, "Active L1 table too large", ""},
		{"absurd L1", func(b []byte) { be.PutUint32(b[36:], 1<<31) }, "Active L1 table too large", ""},
		{"L1 unaligned", func(b []byte) { be.PutUint64(b[40:], 512) }, "Active L1 table offset invalid", ""},
		{"L1 outside", func(b []byte) { be.PutUint64(b[40:], 1<<40) }, "lies outside of the file", ""},
		{"L1 in the header", func(b []byte) { be.PutUint64(b[40:], table) }, "overlaps", ""},
		{"refcount table too large", func(b []byte) { be.PutUint32(b[56:], 1<<20) }, "Reference count table too large", ""},
		{"no refcount table", func(b []byte) { be.PutUint32(b[56:], 0) }, "Image does not contain a reference count table", ""},
		{"refcount order", func(b []byte) { b[99] = 7 }, "may not exceed 64 bits", ""},
		{"snapshots", func(b []byte) { be.PutUint32(b[60:], 1<<30) }, "Snapshot table too large", ""},
		{"snapshots outside", func(b []byte) { be.PutUint32(b[60:], 1); be.PutUint64(b[64:], 1<<40) }, "beyond the end of the file", ""},
		{"backing name", func(b []byte) { be.PutUint64(b[8:], 1<<40); be.PutUint32(b[16:], 5) }, "Invalid backing file offset", ""},
		{"backing name too long", func(b []byte) { be.PutUint64(b[8:], 512); be.PutUint32(b[16:], 1024) }, "Backing file name is too long", ""},
		{"extension", func(b []byte) { be.PutUint32(b[112:], 7); be.PutUint32(b[116:], 1<<31) }, "Header extension 0x00000007", ""},
		{"encrypted", func(b []byte) { b[35] = 2 }, "Encrypted images (luks) are not supported", ""},
		{"corrupt", func(b []byte) { b[79] |= incompatCorrupt }, "Image is corrupt; cannot be opened read/write", ""},
		{"too many extensions", func(b []byte) {
			for i := range 1000 {
				be.PutUint32(b[112+i*8:], uint32(i+1))
				be.PutUint32(b[116+i*8:], 0)
			}
		}, "more than 256 extensions", ""},
		{"two L2 tables in one", func(b []byte) {
			be.PutUint32(b[36:], 2)
			be.PutUint64(b[l1:], 1<<63|4*65536)
			be.PutUint64(b[l1+8:], 1<<63|4*65536)
		}, "two L2 tables or refcount blocks at 262144", ""},
		{"L2 in the refcount table", func(b []byte) { be.PutUint64(b[l1:], 1<<63|table) }, "overlaps: the refcount table", ""},
		{"L2 unaligned", func(b []byte) { be.PutUint64(b[l1:], 1<<63|4*65536+512) }, "", "L2 table offset 0x40200 unaligned"},
		{"L2 outside", func(b []byte) { be.PutUint64(b[l1:], 1<<63|1<<40) }, "", "L2 table at 0x10000000000 lies outside of the file"},
		{"refcount block unaligned", func(b []byte) { be.PutUint64(b[table:], refs+512) }, "", "refcount block offset 0x20200 unaligned"},
		{"refcount block outside", func(b []byte) { be.PutUint64(b[table:], 1<<40) }, "", "refcount block at 0x10000000000 lies outside of the file"},
		{"refcounts are zero", func(b []byte) { clear(b[refs : refs+65536]) }, "", "would overwrite the header"},
		{"refcount of the L1 table is zero", func(b []byte) { b[refs+7] = 0 }, "", "would overwrite the active L1 table"},
	} {
		t.Run(c.name, func(t *testing.T) {
			i := newImage(t, CreateOptions{Size: 16 * mib}, Options{}, nil)
			b := i.mem.Bytes()
			c.change(b)
			m := blocktest.NewMemOf(b, blocktest.MemOptions{})
			g := block.NewGraph()
			file := edge(t, g, blocktest.NewNode(t, g, "file", m, block.Options{}))
			var told []Corruption
			d, err := Open(bg, Options{OnCorrupt: func(c Corruption) { told = append(told, c) }}, Children{File: file})
			if c.open != "" {
				if err == nil || !strings.Contains(err.Error(), c.open) || block.KindOf(err) == block.KindIO {
					t.Errorf("open: %v, want %q", err, c.open)
				}
				return
			}
			must(t, err)
			err = d.WriteAt(bg, []byte{1}, 0, 0)
			if err == nil || !strings.Contains(err.Error(), c.use) || block.KindOf(err) != block.KindIO {
				t.Errorf("write: %v, want %q", err, c.use)
			}
			if len(told) != 1 || !told[0].Fatal {
				t.Errorf("told %+v", told)
			}
			if err := d.WriteAt(bg, []byte{1}, 8*mib, 0); block.KindOf(err) != block.KindInvalid || err == nil {
				t.Errorf("second write: %v", err)
			}
			if !d.Info().Corrupt {
				t.Error("not marked as corrupt")
			}
			if _, err := Open(bg, Options{}, Children{File: file}); err == nil {
				t.Error("can be opened again")
			}
			must(t, d.Close())
		})
	}
}

// TestBrokenClusters has entries that lead where no guest data may be.
func TestBrokenClusters(t *testing.T) {
	for _, c := range []struct {
		entry uint64
		read  string
		write string
	}{
		{1<<63 | 512, "the cluster offset 0x200 is unaligned", "the cluster offset 0x200 is unaligned"},
		{1<<63 | 1<<16, "", "would overwrite the refcount table"},
		{1<<63 | 2<<16, "", "would overwrite an L2 table or refcount block"},
		{1<<63 | 1<<50, "", "lies outside of the file"},
		{1<<62 | 5<<16, "the compressed cluster at 327680 cannot be read", "cannot be read"},
		{1<<62 | 1<<53, "the compressed cluster", "the compressed cluster"},
	} {
		i := newImage(t, CreateOptions{Size: 16 * mib}, Options{}, nil)
		must(t, i.node.WriteAt(bg, pattern(64*kib, 1), 0, block.FUA))
		b := i.mem.Bytes()
		l2 := binary.BigEndian.Uint64(b[3*65536:]) & offsetMask
		binary.BigEndian.PutUint64(b[l2:], c.entry)
		broken := over(t, blocktest.NewMemOf(b, blocktest.MemOptions{}), nil, Options{}, nil)
		err := broken.node.ReadAt(bg, make([]byte, 512), 0)
		if c.read == "" && err != nil || c.read != "" && (err == nil || !strings.Contains(err.Error(), c.read)) {
			t.Errorf("%#x: read: %v, want %q", c.entry, err, c.read)
		}
		if c.read != "" && strings.Contains(c.read, "offset") { // the image is marked by now
			continue
		}
		err = broken.node.WriteAt(bg, make([]byte, 512), 0, 0)
		if err == nil || !strings.Contains(err.Error(), c.write) {
			t.Errorf("%#x: write: %v, want %q", c.entry, err, c.write)
		}
	}
}

func TestCreateErrors(t *testing.T) {
	for _, c := range []struct {
		o    CreateOptions
		want string
	}{
		{CreateOptions{ClusterSize: 1000}, "Cluster size must be a power of two between 512 and 2048k"},
		{CreateOptions{ClusterSize: 4 << 20}, "Cluster size must be a power of two between 512 and 2048k"},
		{CreateOptions{RefcountBits: 3}, "Refcount width must be a power of two and may not exceed 64 bits"},
		{CreateOptions{RefcountBits: 128}, "Refcount width must be a power of two and may not exceed 64 bits"},
		{CreateOptions{Version: 2, RefcountBits: 8}, "Different refcount widths than 16 bits require compatibility level 1.1 or above (use version=v3 or greater)"},
		{CreateOptions{Version: 2, LazyRefcounts: true}, "Lazy refcounts only supported with compatibility level 1.1 and above (use version=v3 or greater)"},
		{CreateOptions{Version: 2, ExtendedL2: true}, "Extended L2 entries are only supported with compatibility level 1.1 and above (use version=v3 or greater)"},
		{CreateOptions{ExtendedL2: true, ClusterSize: 8192}, "Extended L2 entries are only supported with cluster sizes of at least 16384 bytes"},
		{CreateOptions{Version: 2, Compression: "zstd"}, "Non-zlib compression type is only supported with compatibility level 1.1 and above (use version=v3 or greater)"},
		{CreateOptions{DataFileRaw: true}, "data-file-raw requires data-file"},
		{CreateOptions{BackingFormat: "raw"}, "Backing format cannot be used without backing file"},
		{CreateOptions{BackingFile: "b", Preallocation: "metadata"}, "Backing file and preallocation can only be used at the same time if extended_l2 is on"},
		{CreateOptions{Size: 1 << 40, ClusterSize: 512}, "The image size is too large for file format 'qcow2' (try using a larger cluster size)"},
		{CreateOptions{Size: 1000}, "The image size must be a multiple of 512 bytes"},
		{CreateOptions{Preallocation: "some"}, "Unsupported preallocation mode: some"},
		{CreateOptions{BackingFile: strings.Repeat("x", 1000), ClusterSize: 512}, "the first cluster has 512"},
	} {
		g := block.NewGraph()
		file := edge(t, g, blocktest.NewNode(t, g, "file", blocktest.NewMem(blocktest.MemOptions{}), block.Options{}))
		err := Create(bg, c.o, file, nil)
		if err == nil || !strings.Contains(err.Error(), c.want) || block.KindOf(err) != block.KindInvalid {
			t.Errorf("%+v: %v, want %q", c.o, err, c.want)
		}
	}
}

func TestOptionErrors(t *testing.T) {
	n := func(v int64) *int64 { return &v }
	yes := true
	i := newImage(t, CreateOptions{Size: mib, Version: 2}, Options{}, nil)
	for _, c := range []struct {
		o    Options
		want string
	}{
		{Options{CacheSize: n(1 << 20), L2CacheSize: n(1), RefcountCacheSize: n(1)}, "cache-size, l2-cache-size and refcount-cache-size may not be set at the same time"},
		{Options{CacheSize: n(1 << 20), L2CacheSize: n(2 << 20)}, "l2-cache-size may not exceed cache-size"},
		{Options{CacheSize: n(1 << 20), RefcountCacheSize: n(2 << 20)}, "refcount-cache-size may not exceed cache-size"},
		{Options{L2CacheEntrySize: n(1000)}, "L2 cache entry size must be a power of two between 512 and the cluster size (65536)"},
		{Options{L2CacheSize: n(-1)}, "Parameter 'l2-cache-size' expects a non-negative number"},
		{Options{LazyRefcounts: &yes}, "Lazy refcounts require a qcow2 image with at least qemu 1.1 compatibility level"},
		{Options{DiscardNoUnref: true}, "discard-no-unref is only supported since qcow2 version 3"},
	} {
		_, err := Open(bg, c.o, Children{File: edge(t, i.g, i.file)})
		if err == nil || err.Error() != c.want {
			t.Errorf("%+v: %v, want %q", c.o, err, c.want)
		}
	}
}

// TestFullFile has a file that cannot grow: an error of its kind, and what was there stays readable.
func TestFullFile(t *testing.T) {
	i := newImage(t, CreateOptions{Size: 16 * mib}, Options{}, nil)
	i.mem.SetHook(func(_ context.Context, c blocktest.Call) error {
		if c.Op == block.OpResize && c.Off > 2*mib {
			return &block.Error{Kind: block.KindNoSpace, Op: block.OpResize}
		}
		return nil
	})
	model := make([]byte, 16*mib)
	var err error
	for off := int64(0); off < 16*mib && err == nil; off += 128 * kib {
		p := pattern(128*kib, byte(off>>17))
		if err = i.node.WriteAt(bg, p, off, 0); err == nil {
			copy(model[off:], p)
		} else {
			must(t, i.node.ReadAt(bg, model[off:off+128*kib], off))
		}
	}
	if block.KindOf(err) != block.KindNoSpace || err == nil {
		t.Fatalf("error %v", err)
	}
	i.agrees(t, model)
	i.mem.SetHook(nil)
	i.settled(t)
}

// TestFailingFile has every request to the file fail once: the error is told, the image stays consistent, and what a later flush
// says is durable is.
func TestFailingFile(t *testing.T) {
	for fail := range 60 {
		i := newImage(t, CreateOptions{Size: 4 * mib, ClusterSize: 1024}, Options{Unmap: true}, nil)
		h := newHistory(4*mib, 512)
		count := 0
		i.mem.SetHook(func(_ context.Context, c blocktest.Call) error {
			if looks := c.Op == block.OpStatus || c.Op == block.OpRead && count > 0; looks {
				return nil
			}
			if count++; count == fail {
				return &block.Error{Kind: block.KindIO, Op: c.Op}
			}
			return nil
		})
		for step := range 12 {
			off, v := int64(step)*300*kib&^511, byte(step+1)
			h.set(off, 20*kib, v)
			_ = i.node.WriteAt(bg, bytes.Repeat([]byte{v}, 20*kib), off, 0)
			if step%4 == 3 && i.node.Flush(bg) == nil {
				// What failed to be written is unknown; the disk tells.
				got := make([]byte, 4*mib)
				must(t, i.node.ReadAt(bg, got, 0))
				for u := range h.now {
					h.now[u] = got[u*512]
				}
				h.flush()
			}
			if _, err := consistent(i.mem.Crash(uint64(fail)).Bytes()); err != nil {
				t.Fatalf("request %d failed: corrupt after a crash: %v", fail, err)
			}
		}
		found := over(t, i.mem.Crash(uint64(fail)), nil, Options{}, nil)
		h.check(t, found.node)
		i.mem.SetHook(nil)
		must(t, i.disk.Settle(bg))
		check(t, i.mem.Bytes(), 64)
	}
}
