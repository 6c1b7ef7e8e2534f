// SPDX-License-Identifier: Apache-2.0

package mirror

import (
	"context"

	"github.com/blkmirror/blkmirror/block"
)

const (
	// A written head of at most this many bytes is read to see whether it is zero; formatting tools leave such heads.
	headSize = 1 << 20
	// How much of a target that is said to be zero is read to see a lie.
	samples    = 64
	sampleSize = 4 << 10
	// How many extents of such a target are looked at.
	sampledExtents = 4096
)

// image is what is read to see whether it is zero.
type image interface {
	Size() int64
	ReadAt(ctx context.Context, p []byte, off int64) error
	BlockStatus(ctx context.Context, off, n int64) (block.Extent, error)
}

// readsZero finds out whether the whole target reads as zero: by block status, but for a few bytes of data that are read.
func readsZero(ctx context.Context, target image) (bool, error) {
	var read int64
	for at := int64(0); at < target.Size(); {
		extent, err := target.BlockStatus(ctx, at, target.Size()-at)
		if err != nil {
			return false, err
		}
		if extent.Status&block.StatusZero == 0 {
			if read += extent.Len; read > headSize {
				return false, nil
			}
			zero, err := rangeIsZero(ctx, target, at, extent.Len)
			if err != nil || !zero {
				return false, err
			}
		}
		at += extent.Len
	}
	return true, nil
}

func rangeIsZero(ctx context.Context, n image, at, length int64) (bool, error) {
	b := block.GetBuffer(int(min(length, headSize)))
	defer b.Release()
	for length > 0 {
		p := b.B[:min(length, int64(len(b.B)))]
		if err := n.ReadAt(ctx, p, at); err != nil {
			return false, err
		}
		if !block.IsZero(p) {
			return false, nil
		}
		at, length = at+int64(len(p)), length-int64(len(p))
	}
	return true, nil
}

// checkReadsZero refuses a target that is said to be zero and visibly is not: samples of its data are read. Data that reads
// as zero is no lie.
func checkReadsZero(ctx context.Context, target *block.Node) error {
	var data []span
	for at, looked := int64(0), 0; at < target.Size() && looked < sampledExtents; looked++ {
		extent, err := target.BlockStatus(ctx, at, target.Size()-at)
		if err != nil {
			return err
		}
		if extent.Status&block.StatusZero == 0 {
			data = append(data, span{at, at + extent.Len})
		}
		at += extent.Len
	}
	var total int64
	for _, s := range data {
		total += s.end - s.off
	}
	if total == 0 {
		return nil
	}
	stride := max(total/samples, sampleSize)
	next := int64(0) // position within the data, all extents in a row
	passed := int64(0)
	for _, s := range data {
		length := s.end - s.off
		for ; next < passed+length; next += stride {
			at := s.off + next - passed
			zero, err := rangeIsZero(ctx, target, at, min(sampleSize, s.end-at))
			if err != nil {
				return err
			}
			if !zero {
				return invalid("target-is-zero is set, but node '%s' has data at offset %d", target.Name(), at)
			}
		}
		passed += length
	}
	return nil
}
