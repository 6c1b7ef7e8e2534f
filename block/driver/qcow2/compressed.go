// SPDX-License-Identifier: Apache-2.0

package qcow2

import (
	"bytes"
	"compress/flate"
	"context"
	"fmt"
	"io"
	"sync"

	"github.com/klauspost/compress/zstd"

	"github.com/blkmirror/blkmirror/block"
)

// lastDecompressed keeps the cluster that was decompressed last, because small requests follow each other through a cluster.
// Compressed clusters never change: a write to one moves it, and no new ones are made.
type lastDecompressed struct {
	sync.Mutex
	host int64 // of the compressed data; 0 for none
	data []byte
}

// readCompressed fills p from byte in of a compressed cluster.
func (d *Disk) readCompressed(ctx context.Context, p []byte, in int64, e *entry) error {
	d.plain.Lock()
	if d.plain.host == e.host && e.host != 0 {
		copy(p, d.plain.data[in:])
		d.plain.Unlock()
		return nil
	}
	d.plain.Unlock()
	b := block.GetBuffer(int(e.length))
	defer b.Release()
	d.file.Event("read_compressed")
	if err := readPadded(ctx, d.file, b.B, e.host); err != nil {
		return err
	}
	whole := p
	if int64(len(p)) < d.cluster {
		buffer := block.GetBuffer(int(d.cluster))
		defer buffer.Release()
		whole = buffer.B
	}
	if err := decompressors[d.compression](whole, b.B); err != nil {
		return fmt.Errorf("the compressed cluster at %d cannot be read: %w", e.host, err)
	}
	if int64(len(p)) == d.cluster {
		return nil
	}
	copy(p, whole[in:])
	d.plain.Lock()
	defer d.plain.Unlock()
	d.plain.host, d.plain.data = e.host, append(d.plain.data[:0], whole...)
	return nil
}

// decompressors fill a cluster by what a compressed one holds, by compression_type. Behind the compressed data there may be
// anything; too little of it is an error.
var decompressors = [...]func(cluster, from []byte) error{inflate, unzstd}

var flatePool, zstdPool sync.Pool

func inflate(cluster, from []byte) error {
	r, _ := flatePool.Get().(io.ReadCloser)
	if r == nil {
		r = flate.NewReader(nil)
	}
	defer flatePool.Put(r)
	if err := r.(flate.Resetter).Reset(bytes.NewReader(from), nil); err != nil {
		return err
	}
	_, err := io.ReadFull(r, cluster)
	return err
}

// maxZstdWindow is what an encoder may ask a decoder to remember, beyond a cluster.
const maxZstdWindow = 8 << 20

func unzstd(cluster, from []byte) error {
	r, _ := zstdPool.Get().(*zstd.Decoder)
	if r == nil {
		var err error
		if r, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxWindow(maxZstdWindow)); err != nil {
			return err
		}
	}
	defer func() {
		_ = r.Reset(nil)
		zstdPool.Put(r)
	}()
	if err := r.Reset(bytes.NewReader(from)); err != nil {
		return err
	}
	_, err := io.ReadFull(r, cluster)
	return err
}
