// SPDX-License-Identifier: Apache-2.0

package blocktest

import "github.com/blkmirror/blkmirror/block"

const (
	sector         = 512
	pageSize       = 4096
	pageSectors    = pageSize / sector
	statusData     = block.StatusData | block.StatusAllocated
	statusReadZero = block.StatusZero | block.StatusAllocated
)

// page is 4 KiB of a sparse disk. The masks have a bit for each sector.
type page struct {
	data      [pageSize]byte
	allocated uint8 // takes space
	zeroed    uint8 // of those: known to be zero
}

// pages is the content of a sparse disk, by page number. A page that is missing is a hole.
type pages map[int64]*page

// each calls do for the part of every page that the range touches, creating pages that are missing if create is set.
func (ps pages) each(off, n int64, create bool, do func(pg *page, at, length int)) {
	for n > 0 {
		number, at := off/pageSize, off%pageSize
		length := min(n, pageSize-at)
		pg := ps[number]
		if pg == nil && create {
			pg = &page{}
			ps[number] = pg
		}
		if pg != nil {
			do(pg, int(at), int(length))
			if pg.allocated == 0 {
				delete(ps, number)
			}
		}
		off, n = off+length, n-length
	}
}

// sectors is the mask of the sectors that a part of a page touches, inner of those that it covers.
func sectors(at, length int) (outer, inner uint8) {
	for s := range pageSectors {
		start, end := s*sector, (s+1)*sector
		if at < end && start < at+length {
			outer |= 1 << s
		}
		if at <= start && end <= at+length {
			inner |= 1 << s
		}
	}
	return outer, inner
}

func (ps pages) read(p []byte, off int64) {
	for len(p) > 0 {
		number, at := off/pageSize, off%pageSize
		length := min(int64(len(p)), pageSize-at)
		if pg := ps[number]; pg != nil {
			copy(p[:length], pg.data[at:])
		} else {
			clear(p[:length])
		}
		p, off = p[length:], off+length
	}
}

func (ps pages) write(p []byte, off int64) {
	ps.each(off, int64(len(p)), true, func(pg *page, at, length int) {
		copy(pg.data[at:at+length], p)
		p = p[length:]
		outer, _ := sectors(at, length)
		pg.allocated |= outer
		pg.zeroed &^= outer
	})
}

func (ps pages) zero(off, n int64) {
	ps.each(off, n, true, func(pg *page, at, length int) {
		clear(pg.data[at : at+length])
		outer, inner := sectors(at, length)
		pg.zeroed |= inner | outer&^pg.allocated // the rest of a sector in a hole is zero too
		pg.allocated |= outer
	})
}

func (ps pages) punch(off, n int64) {
	ps.each(off, n, false, func(pg *page, at, length int) {
		clear(pg.data[at : at+length])
		_, inner := sectors(at, length)
		pg.allocated &^= inner
		pg.zeroed &^= inner
	})
}

func (ps pages) status(off, n int64) block.Extent {
	first := ps.sectorStatus(off / sector)
	end := (off/sector + 1) * sector
	for end < off+n && ps.sectorStatus(end/sector) == first {
		end += sector
	}
	return block.Extent{Len: min(end-off, n), Status: first}
}

func (ps pages) sectorStatus(number int64) block.Status {
	bit := uint8(1) << (number % pageSectors)
	if pg := ps[number/pageSectors]; pg != nil && pg.allocated&bit != 0 && pg.zeroed&bit == 0 {
		return statusData
	}
	return statusReadZero
}

func (ps pages) allocated() int64 {
	var count int64
	for _, pg := range ps {
		for mask := pg.allocated; mask != 0; mask &= mask - 1 {
			count++
		}
	}
	return count * sector
}
