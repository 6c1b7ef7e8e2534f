// SPDX-License-Identifier: Apache-2.0

package mirror

import (
	"context"

	"github.com/blkmirror/blkmirror/block"
)

// Offload says which ways the kernel may copy data in.
type Offload uint8

// The values of copy-offload.
const (
	OffloadAuto  Offload = iota // source and target may share extents
	OffloadRange                // copy_file_range only
	OffloadOff
)

const (
	// clonePiece is how much is claimed at once where extents are shared: that costs about the same for any length.
	clonePiece = 64 << 20
	// maxMisses is after how many ranges in a row that the kernel did not copy it is not asked any more.
	maxMisses = 16
)

// offloading is what is known of the kernel's ways between source and target.
type offloading struct {
	off    bool // it is not to be tried, or not any more
	clones bool // the last range was cloned
	misses int  // ranges in a row that were not copied
}

// missed notes a range that was not copied; never says that none will be. Others may be on their way, and fail later.
func (k *offloading) missed(never bool) {
	k.misses++
	k.clones = false
	k.off = k.off || never || k.misses >= maxMisses
}

// most is the most data that one claim should have.
func (m *Mirror) most() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.mostLocked()
}

func (m *Mirror) mostLocked() int64 {
	if m.kernel.clones {
		return max(m.piece, clonePiece)
	}
	return m.piece
}

// offload has the kernel copy from the start of a range of data, as far as it does, and returns where the rest begins. Whatever
// goes wrong there the copy through a buffer meets, too, and tells of, or it does not matter.
func (m *Mirror) offload(ctx context.Context, o *op, at, end int64, r *result) int64 {
	source := m.filter.source.Node()
	for at < end {
		m.mu.Lock()
		tried, limit := !m.kernel.off, m.mostLocked()
		if tried {
			limit = min(limit, end-at)
			m.planner.copyData(o, at, at+limit)
		}
		m.mu.Unlock()
		if !tried {
			break
		}
		n, how, err := m.filter.target.CopyRange(ctx, source, at, at, limit, m.opts.Offload == OffloadAuto)
		m.mu.Lock()
		if err != nil {
			m.kernel.missed(err == block.NotSupported)
		} else {
			m.kernel.misses = 0
			m.kernel.clones = how == block.OffloadCloned
			m.bytes.Offloaded += n
		}
		m.mu.Unlock()
		if err != nil {
			break
		}
		r.data += n
		at += n
	}
	return at
}
