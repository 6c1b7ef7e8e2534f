// SPDX-License-Identifier: Apache-2.0

package intent

import (
	"fmt"
	"io"

	"github.com/blkmirror/blkmirror/block/bitmap"
)

// Pass is a comparison of both disks, as far as it has come. It is kept in records behind those of what is dirty, one bit for each
// region that was found equal; their sequence is the number of the pass, so that those of an earlier one count for nothing. What is
// lost of it is compared again, so it is never made durable for its own sake.
type Pass struct {
	Number    uint64         // from 1
	Differing int64          // bytes that differed; what is found again after a crash may count twice
	Left      *bitmap.Bitmap // what is to be compared still, of whatever granularity; nil for everything
}

// SetPass records how far a comparison has come; a pass that is over when a later one is recorded is not. It writes what has changed.
func (l *Log) SetPass(p Pass) error {
	l.io.Lock()
	defer l.io.Unlock()
	h := &l.io.header
	if h.phase == Scanning || h.phase >= Pivoted || p.Number < h.pass {
		return nil
	}
	if p.Number != h.pass || p.Differing != h.differing {
		was := *h
		h.pass, h.differing = p.Number, p.Differing
		if err := l.writeHeader(h.phase, false); err != nil {
			h.pass, h.differing = was.pass, was.differing
			return err
		}
		if p.Number != was.pass {
			l.io.equal = make([]uint64, len(l.mu.wanted))
		}
	}
	if p.Left == nil {
		return nil
	}
	for i := range recordsFor(l.regions()) {
		s := snapshot{number: recordsFor(l.regions()) + i}
		changed := false
		for w := range s.words {
			at := int(i)*recordWords + w
			s.words[w] = l.equalWord(at, p.Left)
			changed = changed || s.words[w] != l.io.equal[at]
		}
		if !changed {
			continue
		}
		encodeRecord(&l.io.buffer, h.id, s.number, p.Number, s.words[:])
		if err := l.write(recordAt(s.number)); err != nil {
			return err
		}
		copy(l.io.equal[i*recordWords:], s.words[:])
	}
	return nil
}

// equalWord has the bits of the regions of a word in which nothing is left.
func (l *Log) equalWord(word int, left *bitmap.Bitmap) (bits uint64) {
	for bit := range int64(64) {
		if r := int64(word)*64 + bit; r < l.regions() && !left.AnySet(left.Outward(l.bytes(r))) {
			bits |= 1 << bit
		}
	}
	return bits
}

// loadPass reads how far the comparison was. What differed since or may differ is left, and what cannot be read.
func (h *header) loadPass(f io.ReaderAt, dirty *bitmap.Bitmap) *Pass {
	if h.pass == 0 {
		return nil
	}
	left, _ := bitmap.New(h.size, 1<<h.shift)
	left.Set(left.All())
	regions := left.All().End
	words := make([]uint64, recordWords)
	for i := range recordsFor(regions) {
		if readPass(f, h, recordsFor(regions)+i, words) != nil {
			continue
		}
		for region := i * perRecord; region < min((i+1)*perRecord, regions); region++ {
			if at := region - i*perRecord; words[at/64]>>(uint(at)%64)&1 != 0 {
				left.Clear(bitmap.Chunks{First: region, End: region + 1})
			}
		}
	}
	left.Union(dirty)
	return &Pass{h.pass, h.differing, left}
}

func readPass(f io.ReaderAt, h *header, number int64, words []uint64) error {
	var b [sector]byte
	if n, err := f.ReadAt(b[:], recordAt(number)); n < sector {
		return err
	}
	if pass := le.Uint64(b[500:]); pass != h.pass {
		return fmt.Errorf("it is of pass %d", pass)
	}
	return decodeRecord(&b, h.id, number, words)
}
