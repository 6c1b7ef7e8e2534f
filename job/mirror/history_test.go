// SPDX-License-Identifier: Apache-2.0

package mirror

import (
	"fmt"
	"slices"
	"sync"
)

// history knows what guests wrote and when, and which bytes a read may therefore return. It is deliberately dumb: every
// write that began before the read ended may have been the last one, unless a later one was over before the read began.
type history struct {
	mu      sync.Mutex
	clock   int64
	initial []byte
	records []*record
	scope   []bool // bytes that the target has to have at the end
	from    int64  // when the mirror began; what was under way then it need not have
	last    uint64 // id of the last write
	resets  int
}

type kind uint8

const (
	data kind = iota
	zero
	trim // may read as zero, as before, or as what garbage the disk makes
)

// record is one write.
type record struct {
	id            uint64
	kind          kind
	off, end      int64
	begin, finish int64 // finish is 0 while it is under way
	failed        bool  // it may have happened or not, or in part
}

// fill makes what the data write id has from byte off of the disk on. Some are full of zeroes, some have pages of them.
func fill(p []byte, id uint64, off int64) {
	for i := 0; i < len(p); {
		at := off + int64(i)
		page := uint64(at) / 4096
		if id%8 == 1 || id%4 == 2 && (page*0x9e3779b97f4a7c15+id)>>61&1 == 0 {
			p[i] = 0
			i++
			continue
		}
		x := (id+1)*0x9e3779b97f4a7c15 + uint64(at/8)*0xbf58476d1ce4e5b9
		x ^= x >> 31
		x *= 0x94d049bb133111eb
		for ok := true; ok; ok = i < len(p) && at%8 != 0 {
			p[i] = byte(x>>(at%8*8)) | 1
			i, at = i+1, at+1
		}
	}
}

// now moves the clock on. The caller holds the lock.
func (h *history) now() int64 {
	h.clock++
	return h.clock
}

func (h *history) begin(k kind, off, n int64) *record {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.last++
	r := &record{id: h.last, kind: k, off: off, end: off + n, begin: h.now()}
	h.records = append(h.records, r)
	return r
}

func (h *history) end(r *record, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	r.finish, r.failed = h.now(), err != nil
	if err == nil && r.kind != trim && r.begin > h.from {
		for i := r.off; i < r.end; i++ {
			h.scope[i] = true
		}
	}
}

// time is what check wants to know about when a read began.
func (h *history) time() (now int64, resets int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.now(), h.resets
}

// reset says that guests were given another disk, which holds what is in content and is not a copy of the one before. No
// request is in flight. The caller holds the lock.
func (h *history) reset(content []byte) {
	h.initial = content
	h.records = slices.DeleteFunc(h.records, func(r *record) bool { return r.finish != 0 })
	h.resets++
}

// underWay marks the chunks that a write under way touches. The caller holds the lock.
func (h *history) underWay(granularity int64, chunks int64) []bool {
	busy := make([]bool, chunks)
	for _, r := range h.records {
		if r.finish == 0 {
			for c := r.off / granularity; c*granularity < r.end; c++ {
				busy[c] = true
			}
		}
	}
	return busy
}

// check says what is wrong with what a read that began at a time returned.
func (h *history) check(p []byte, off, began int64, resets int) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.resets != resets {
		return nil // of which disk was that?
	}
	end := off + int64(len(p))
	cuts := []int64{off, end}
	var over []*record
	for _, r := range h.records {
		if r.off < end && off < r.end {
			over = append(over, r)
			cuts = append(cuts, max(r.off, off), min(r.end, end))
		}
	}
	slices.Sort(cuts)
	cuts = slices.Compact(cuts)
	for i := range cuts[:len(cuts)-1] {
		if err := h.segment(p[cuts[i]-off:cuts[i+1]-off], cuts[i], over, began); err != nil {
			return err
		}
	}
	return nil
}

func (h *history) segment(p []byte, off int64, over []*record, began int64) error {
	end := off + int64(len(p))
	var last int64 // begin of the last write that was over in time
	var covering []*record
	for _, r := range over {
		if r.off <= off && end <= r.end {
			covering = append(covering, r)
			if r.finish != 0 && r.finish < began && !r.failed && r.kind != trim {
				last = max(last, r.begin)
			}
		}
	}
	matched := make([]bool, len(p))
	missing := len(p)
	match := func(fits func(i int) bool) bool {
		for i := range p {
			if !matched[i] && fits(i) {
				matched[i] = true
				missing--
			}
		}
		return missing == 0
	}
	want := make([]byte, len(p))
	same := func(i int) bool { return p[i] == want[i] }
	for _, r := range slices.Backward(covering) {
		if r.finish != 0 && r.finish < last {
			continue
		}
		if r.kind == trim {
			if match(func(i int) bool { return p[i] == 0 || p[i]&0xf0 == 0xd0 }) {
				return nil
			}
			continue
		}
		clear(want)
		if r.kind == data {
			fill(want, r.id, off)
		}
		if match(same) {
			return nil
		}
	}
	if last == 0 {
		copy(want, h.initial[off:])
		if match(same) {
			return nil
		}
	}
	at := slices.Index(matched, false)
	text := fmt.Sprintf("byte %d reads as %#x, which no write explains (began %d):", off+int64(at), p[at], began)
	for _, r := range covering {
		w := make([]byte, 1)
		if r.kind == data {
			fill(w, r.id, off+int64(at))
		}
		text += fmt.Sprintf(" {%d kind %d %d..%d %d-%d failed %v has %#x}", r.id, r.kind, r.off, r.end, r.begin, r.finish, r.failed, w[0])
	}
	return fmt.Errorf("%s initial %#x", text, h.initial[off+int64(at)])
}
