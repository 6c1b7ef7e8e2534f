// SPDX-License-Identifier: Apache-2.0

package powerloss

import (
	"encoding/binary"
	"fmt"
	"sync"

	"github.com/blkmirror/blkmirror/block/bitmap"
)

// journal is what guests know of their disk, by sector. It is outside of all that ends.
type journal struct {
	mu      sync.Mutex
	sectors []history
	last    uint64 // tag that a write got
	clock   uint64 // counts answers
	frozen  bool   // the host has ended: what is answered from now on is answered by nobody
}

// history is what a sector may hold: the first entry is durable, what follows was written later.
type history []entry

type entry struct {
	tag      uint64 // 0 for zeroes
	answered uint64 // when a guest was told that it is written; 0 for not, or not for certain, as after a trim
	written  uint64 // the clock when the write began
}

func newJournal(size int64) *journal {
	j := &journal{sectors: make([]history, size/sector)}
	for i := range j.sectors {
		j.sectors[i] = history{{0, 1, 0}}
	}
	j.clock = 1
	return j
}

// fill makes the data of a write.
func (j *journal) fill(p []byte, tag uint64) {
	for at := 0; at < len(p); at += 8 {
		binary.LittleEndian.PutUint64(p[at:], tag)
	}
}

// begin notes that a write begins; with no data it is of zeroes.
func (j *journal) begin(off, n int64, zeroes bool) (tag uint64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if !zeroes {
		j.last++
		tag = j.last<<16 | 0xb10c
	}
	if !j.frozen {
		for s := off / sector; s < (off+n)/sector; s++ {
			j.sectors[s] = append(j.sectors[s], entry{tag: tag, written: j.clock})
		}
	}
	return tag
}

// answer notes that the write that began last on a range is done.
func (j *journal) answer(off, n int64, durable bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.frozen {
		return
	}
	j.clock++
	for s := off / sector; s < (off+n)/sector; s++ {
		h := j.sectors[s]
		h[len(h)-1].answered = j.clock
		if durable {
			j.sectors[s] = h[len(h)-1:]
		}
	}
}

// flushing is called before a flush, flushed with what it returned when that succeeded.
func (j *journal) flushing() (began uint64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.clock
}

func (j *journal) flushed(began uint64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.frozen {
		return
	}
	for s, h := range j.sectors {
		for i := len(h) - 1; i > 0; i-- {
			if h[i].answered > 0 && h[i].answered <= began {
				j.sectors[s] = h[i:]
				break
			}
		}
	}
}

// freeze is the end of a host.
func (j *journal) freeze() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.frozen = true
}

// loss is what may have happened to what was not flushed.
type loss uint8

const (
	nothing  loss = iota
	someLost      // by the death of a process that kept it; what is found may still be in caches of the host
	allLost       // what is found is durable
)

// read checks what was read from the disk while nobody writes there: it must be what guests were told last. After a loss of
// what was not flushed it may be anything since, and is that from then on.
func (j *journal) read(p []byte, off int64, lost loss) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.frozen {
		return nil
	}
	for at := int64(0); at < int64(len(p)); at += sector {
		s := (off + at) / sector
		h := j.sectors[s]
		tag := binary.LittleEndian.Uint64(p[at:])
		for i := int64(8); i < sector; i += 8 {
			if is := binary.LittleEndian.Uint64(p[at+i:]); is != tag {
				return fmt.Errorf("sector %d holds %#x, and %#x at byte %d", s, tag, is, i)
			}
		}
		from := 0
		if lost == nothing {
			for i := range h {
				if h[i].answered > 0 {
					from = i
				}
			}
		}
		found := -1
		for i := from; i < len(h); i++ {
			if h[i].tag == tag {
				found = i
			}
		}
		if found < 0 {
			return fmt.Errorf("sector %d holds %#x, and guests know of %v, from %d on", s, tag, h, from)
		}
		is := entry{tag, j.clock, h[found].written}
		switch {
		case lost == allLost:
			j.sectors[s] = history{is}
		case len(h) > found+1 || h[found].answered == 0:
			j.sectors[s] = append(h, is)
		}
	}
	return nil
}

// thaw begins the life of another host.
func (j *journal) thaw() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.frozen = false
}

// unseen finds a sector that was written since a moment and is not in a bitmap.
func (j *journal) unseen(since uint64, b *bitmap.Bitmap) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.frozen {
		return nil
	}
	for s, h := range j.sectors {
		if e := h[len(h)-1]; e.written > since && !b.Test(int64(s)*sector/b.Granularity()) {
			return fmt.Errorf("sector %d was written at %d, after %d, and is not in the bitmap", s, e.written, since)
		}
	}
	return nil
}
