// SPDX-License-Identifier: Apache-2.0

package verify

import (
	"bytes"
	"context"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/job/digest"
)

// sector is the unit in which differences are counted, in bytes.
const sector = 512

// result is what came of a piece.
type result struct {
	span
	first     int64 // offset of the first sector that differs
	differing int64 // bytes of the sectors that differ
	failed    *failure
	zero      bool           // both disks said so, and nothing was read
	leaf      [2]digest.Hash // the digests of the two pieces, if they are wanted
}

// compare reads a piece of both disks. The caller is inside both gates.
func (v *Verify) compare(ctx context.Context, piece span) result {
	r := result{span: piece}
	n := piece.end - piece.off
	a, b := block.GetBuffer(int(n)), block.GetBuffer(int(n))
	defer a.Release()
	defer b.Release()
	if err := v.device.Edge.ReadAt(ctx, a.B, piece.off); err != nil {
		r.failed = &failure{false, piece.off, n, err}
		return r
	}
	if err := v.target.Edge.ReadAt(ctx, b.B, piece.off); err != nil {
		r.failed = &failure{true, piece.off, n, err}
		return r
	}
	first, differing := differ(a.B, b.B)
	r.first, r.differing = piece.off+first, differing
	if v.opts.Digest {
		r.leaf[0] = digest.Leaf(a.B)
		if r.leaf[1] = r.leaf[0]; differing > 0 {
			r.leaf[1] = digest.Leaf(b.B)
		}
	}
	return r
}

// differ says which sector of two equally long pieces is the first that differs, and how many bytes such sectors have in all.
func differ(a, b []byte) (first, differing int64) {
	if bytes.Equal(a, b) {
		return 0, 0
	}
	for at := 0; at < len(a); at += sector {
		end := min(at+sector, len(a))
		if bytes.Equal(a[at:end], b[at:end]) {
			continue
		}
		if differing == 0 {
			first = int64(at)
		}
		differing += int64(end - at)
	}
	return first, differing
}
