// SPDX-License-Identifier: Apache-2.0

package qcow2

import (
	"context"
	"math"

	"github.com/blkmirror/blkmirror/block"
)

// Preallocation says how much of a new image is allocated at once.
type Preallocation string

// The values of preallocation.
const (
	PreallocationOff      Preallocation = "off"
	PreallocationMetadata Preallocation = "metadata" // clusters have their place, which takes no space
	PreallocationFalloc   Preallocation = "falloc"   // the file reserves the space
	PreallocationFull     Preallocation = "full"     // zeroes are written
)

// CreateOptions describe a new image.
type CreateOptions struct {
	Size          int64 // bytes, a multiple of 512
	Version       int   // 2 or 3; 0 for 3
	ClusterSize   int64 // bytes; 0 for 64 KiB
	RefcountBits  int   // 0 for 16
	ExtendedL2    bool
	LazyRefcounts bool
	Compression   string // "zlib", "zstd"; "" for zlib
	BackingFile   string
	BackingFormat string
	Preallocation Preallocation // "" for off
	DataFileName  string        // as the header is to say
	DataFileRaw   bool
}

// header checks the options and makes a header of them, without the places of tables.
func (o *CreateOptions) header(hasData bool) (*header, error) {
	switch {
	case o.Version == 0:
		o.Version = 3
	case o.Version != 2 && o.Version != 3:
		return nil, invalid("Unsupported qcow2 version %d", o.Version)
	}
	if o.ClusterSize == 0 {
		o.ClusterSize = 64 << 10
	}
	if o.RefcountBits == 0 {
		o.RefcountBits = 16
	}
	if o.Compression == "" {
		o.Compression = compressionNames[0]
	}
	if o.Preallocation == "" {
		o.Preallocation = PreallocationOff
	}
	h := &header{version: o.Version, size: uint64(o.Size), length: headerLenV2, refcountOrder: 4, backingFile: o.BackingFile}
	for h.clusterBits = minClusterBits; h.clusterBits < maxClusterBits && h.clusterSize() < o.ClusterSize; {
		h.clusterBits++
	}
	for h.refcountOrder = 0; h.refcountOrder < maxRefcountOrder && 1<<h.refcountOrder < o.RefcountBits; {
		h.refcountOrder++
	}
	if err := o.check(h, hasData); err != nil {
		return nil, err
	}
	if o.Version == 3 {
		h.length, h.unknown = headerLenOur, make([]byte, headerLenOur-headerLenV3-1)
	}
	for _, f := range []struct {
		on   bool
		set  *uint64
		bits uint64
	}{
		{hasData, &h.incompatible, incompatDataFile},
		{o.ExtendedL2, &h.incompatible, incompatExtendedL2},
		{o.Compression == compressionNames[1], &h.incompatible, incompatCompression},
		{o.LazyRefcounts, &h.compatible, compatLazyRefcounts},
		{o.DataFileRaw, &h.autoclear, autoclearDataFileRaw},
	} {
		if f.on {
			*f.set |= f.bits
		}
	}
	if h.incompatible&incompatCompression != 0 {
		h.compression = 1
	}
	if o.BackingFormat != "" {
		h.setExtension(extBackingFormat, []byte(o.BackingFormat))
	}
	if hasData && o.DataFileName != "" {
		h.setExtension(extDataFile, []byte(o.DataFileName))
	}
	if o.Version == 3 && o.ClusterSize >= 4096 { // where there is room for names of files, too
		h.setExtension(extFeatureNames, featureTable())
	}
	if needed := h.l1Needed(h.size); needed*8 > maxL1Bytes {
		return nil, invalid("The image size is too large for file format 'qcow2' (try using a larger cluster size)")
	}
	h.l1Size = uint32(h.l1Needed(h.size))
	return h, nil
}

func (o *CreateOptions) check(h *header, hasData bool) error {
	const version3 = "compatibility level 1.1 and above (use version=v3 or greater)"
	old := o.Version < 3
	switch {
	case o.Size < 0 || o.Size > math.MaxInt64-1<<maxClusterBits:
		return invalid("The image size is too large: %d", o.Size)
	case o.Size%sectorSize != 0:
		return invalid("The image size must be a multiple of %d bytes", sectorSize)
	case h.clusterSize() != o.ClusterSize:
		return invalid("Cluster size must be a power of two between %d and %dk", 1<<minClusterBits, 1<<maxClusterBits>>10)
	case 1<<h.refcountOrder != o.RefcountBits:
		return invalid("Refcount width must be a power of two and may not exceed 64 bits")
	case old && o.RefcountBits != 16:
		return invalid("Different refcount widths than 16 bits require compatibility level 1.1 or above (use version=v3 or greater)")
	case old && o.LazyRefcounts:
		return invalid("Lazy refcounts only supported with " + version3)
	case old && o.ExtendedL2:
		return invalid("Extended L2 entries are only supported with " + version3)
	case o.ExtendedL2 && h.clusterBits < minExtendedBits:
		return invalid("Extended L2 entries are only supported with cluster sizes of at least %d bytes", 1<<minExtendedBits)
	case o.Compression != compressionNames[0] && o.Compression != compressionNames[1]:
		return invalid("Unknown compression type: %s", o.Compression)
	case old && o.Compression != compressionNames[0]:
		return invalid("Non-zlib compression type is only supported with " + version3)
	case old && hasData:
		return invalid("External data files are only supported with " + version3)
	case o.DataFileRaw && !hasData:
		return invalid("data-file-raw requires data-file")
	case o.DataFileRaw && o.BackingFile != "":
		return invalid("Backing file and data-file-raw cannot be used at the same time")
	case o.BackingFormat != "" && o.BackingFile == "":
		return invalid("Backing format cannot be used without backing file")
	case len(o.BackingFile) > maxBackingName:
		return invalid("Backing file name is too long (%d bytes, at most %d)", len(o.BackingFile), maxBackingName)
	}
	switch o.Preallocation {
	case PreallocationOff:
	case PreallocationMetadata, PreallocationFalloc, PreallocationFull:
		if o.BackingFile != "" && !o.ExtendedL2 {
			return invalid("Backing file and preallocation can only be used at the same time if extended_l2 is on")
		}
	default:
		return invalid("Unsupported preallocation mode: %s", o.Preallocation)
	}
	return nil
}

// featureTable is the content of the feature name table.
func featureTable() []byte {
	var b []byte
	for _, f := range []struct {
		kind, bit byte
		name      string
	}{
		{0, 0, "dirty bit"}, {0, 1, "corrupt bit"}, {0, 2, "external data file"}, {0, 3, "compression type"},
		{0, 4, "extended L2 entries"}, {1, 0, "lazy refcounts"}, {2, 0, "bitmaps"}, {2, 1, "raw external data"},
	} {
		var entry [48]byte
		entry[0], entry[1] = f.kind, f.bit
		copy(entry[2:], f.name)
		b = append(b, entry[:]...)
	}
	return b
}

// Create makes an image in a file, which loses what it held, and if data is not nil with guest clusters in that file.
func Create(ctx context.Context, o CreateOptions, file, data *block.Edge) error {
	var dataFile storage
	if data != nil {
		dataFile = data
	}
	return create(ctx, o, file, dataFile)
}

func create(ctx context.Context, o CreateOptions, file, dataFile storage) error {
	h, err := o.header(dataFile != nil)
	if err != nil {
		return err
	}
	if err := format(ctx, h, file); err != nil {
		return err
	}
	if dataFile != nil {
		if err := lengthen(ctx, "The disk", dataFile, o.Size); err != nil {
			return err
		}
	}
	mode := o.Preallocation
	if o.DataFileRaw && mode == PreallocationOff { // who looks at the data file alone must see what the tables say
		mode = PreallocationMetadata
	}
	if mode == PreallocationOff {
		return nil
	}
	d := &Disk{file: file, data: file}
	if dataFile != nil {
		d.data = dataFile
	}
	if err := d.open(ctx, h, Options{CacheCleanInterval: new(uint64)}); err != nil { // it lives as long as this call
		return err
	}
	if err := d.preallocate(ctx, mode, o.BackingFile == ""); err != nil {
		return err
	}
	return d.Settle(ctx)
}

// lengthen makes a file at least size bytes long, if it is of a kind that can grow. what needs that.
func lengthen(ctx context.Context, what string, file storage, size int64) error {
	if file.Size() >= size {
		return nil
	}
	err := file.Resize(ctx, size)
	if err != nil && block.KindOf(err) == block.KindNotSupported {
		return noSpace("%s needs %d bytes, and its file of %d bytes cannot grow", what, size, file.Size())
	}
	return err
}

// format writes an empty image: header, refcount table, refcount blocks and L1 table, one behind the other.
func format(ctx context.Context, h *header, file storage) error {
	cluster := h.clusterSize()
	clusters := func(bytes int64) int64 { return (bytes + cluster - 1) / cluster }
	perBlock := cluster * 8 >> h.refcountOrder
	l1 := max(clusters(int64(h.l1Size)*8), 1)
	blocks, table := int64(1), int64(1)
	for {
		total := 1 + table + blocks + l1
		b := (total + perBlock - 1) / perBlock
		t := clusters(b * 8)
		if b == blocks && t == table {
			break
		}
		blocks, table = max(b, blocks), max(t, table)
	}
	total := 1 + table + blocks + l1
	h.refTableOffset, h.refTableClusters = uint64(cluster), uint32(table)
	h.l1Offset = uint64((1 + table + blocks) * cluster)
	head, err := h.encode()
	if err != nil {
		return err
	}
	if err := file.Resize(ctx, 0); err != nil && block.KindOf(err) != block.KindNotSupported {
		return err
	}
	if err := lengthen(ctx, "An empty image of this disk", file, total*cluster); err != nil {
		return err
	}
	if err := file.WriteZeroes(ctx, 0, total*cluster, block.MayUnmap); err != nil {
		return err
	}
	places := make([]uint64, blocks)
	r := refcounts{order: h.refcountOrder, perBlock: perBlock}
	for i := range blocks {
		off := (1 + table + i) * cluster
		places[i] = uint64(off)
		b := make([]byte, cluster)
		for c := i * perBlock; c < min((i+1)*perBlock, total); c++ {
			r.setValue(b, c%perBlock, 1)
		}
		if err := file.WriteAt(ctx, b, off, 0); err != nil {
			return err
		}
	}
	if err := file.WriteAt(ctx, encodeTable(places, blocks*8), cluster, 0); err != nil {
		return err
	}
	if err := file.Flush(ctx); err != nil {
		return err
	}
	if err := file.WriteAt(ctx, head, 0, 0); err != nil { // last, so that half an image is none
		return err
	}
	return file.Flush(ctx)
}

// preallocate gives all clusters their places. Without a backing file they hold data, that is, zeroes.
func (d *Disk) preallocate(ctx context.Context, mode Preallocation, holdsData bool) error {
	if err := d.prepare(ctx); err != nil {
		return err
	}
	for off, end := int64(0), d.up(d.Size()); off < end; {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		x := extent{guest: off, host: none}
		x.clusters = (min(end, d.sliceEnd(off)) - off) >> d.clusterBits
		if err := d.ownTable(ctx, off); err != nil {
			return err
		}
		if err := d.place(ctx, &x); err != nil {
			return err
		}
		n := x.clusters << d.clusterBits
		if err := d.preallocateData(ctx, mode, &x, n); err != nil {
			return err
		}
		if err := d.enterPlaces(ctx, &x, holdsData); err != nil {
			return err
		}
		off += n
	}
	return nil
}

// enterPlaces makes the entries of x, which are empty, lead to its clusters.
func (d *Disk) enterPlaces(ctx context.Context, x *extent, holdsData bool) error {
	s, err := d.lockSlice(ctx, x.guest)
	if err != nil {
		return err
	}
	defer d.maps.Unlock()
	begin, _ := d.position(x.guest)
	for i := range x.clusters {
		e := entry{host: x.host + i<<d.clusterBits, copied: true}
		if holdsData {
			e.allocated = d.allSubs
		}
		d.writeEntry(s.data[begin+int(i*d.entry):], e)
	}
	d.maps.markLocked(s, begin, begin+int(x.clusters*d.entry))
	return nil
}

func (d *Disk) preallocateData(ctx context.Context, mode Preallocation, x *extent, n int64) error {
	n = min(n, max(d.data.Size()-x.host, 0)) // a data file ends with the disk
	switch mode {
	case PreallocationMetadata:
		if x.fresh || d.external {
			return nil
		}
		return d.data.WriteZeroes(ctx, x.host, n, block.MayUnmap)
	case PreallocationFalloc:
		return d.data.WriteZeroes(ctx, x.host, n, 0)
	}
	b := block.GetBuffer(int(min(n, 1<<20)))
	defer b.Release()
	clear(b.B)
	for off := x.host; off < x.host+n; off += int64(len(b.B)) {
		if err := d.data.WriteAt(ctx, b.B[:min(int64(len(b.B)), x.host+n-off)], off, 0); err != nil {
			return err
		}
	}
	return nil
}
