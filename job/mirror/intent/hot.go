// SPDX-License-Identifier: Apache-2.0

package intent

// hot is the list of regions that were written or copied, and may be clean by now, least recently first. It is made of indices, so
// that it takes no allocation.
type hot struct {
	entries     []entry
	first, last int32 // none if the list is empty
	length      int
	limit       int
	// Writes that ended up to a tick are durable on both disks if a flush of each that began at it succeeded.
	tick, flushed uint32
}

type entry struct {
	next, previous int32 // unlisted in both if it is not in the list
	pins           uint32
	ended          uint32 // the tick at which the last write ended
}

const (
	none     = -1
	unlisted = -2
)

func (h *hot) init(regions int64, limit int) {
	*h = hot{entries: make([]entry, regions), first: none, last: none, limit: limit, tick: 1}
	for i := range h.entries {
		h.entries[i].next, h.entries[i].previous = unlisted, unlisted
	}
}

// touch makes a region the one that was written last.
func (h *hot) touch(r int64) {
	i := int32(r)
	if h.last == i {
		return
	}
	h.remove(r)
	e := &h.entries[i]
	e.previous, e.next = h.last, none
	if h.last == none {
		h.first = i
	} else {
		h.entries[h.last].next = i
	}
	h.last = i
	h.length++
}

func (h *hot) remove(r int64) {
	e := &h.entries[r]
	if e.next == unlisted {
		return
	}
	if e.previous == none {
		h.first = e.next
	} else {
		h.entries[e.previous].next = e.next
	}
	if e.next == none {
		h.last = e.previous
	} else {
		h.entries[e.next].previous = e.previous
	}
	e.next, e.previous = unlisted, unlisted
	h.length--
}

// Begin begins a write of a range if it is marked. Until Done it stays so.
func (l *Log) Begin(off, n int64) (marked bool) {
	first, end := l.touched(off, n)
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.recordedLocked(first, end) {
		return false
	}
	for r := first; r < end; r++ {
		l.mu.hot.entries[r].pins++
		l.mu.hot.touch(r)
	}
	return true
}

// Done ends a write that was begun: what it left dirty must be known by now.
func (l *Log) Done(off, n int64) {
	first, end := l.touched(off, n)
	l.mu.Lock()
	defer l.mu.Unlock()
	h := &l.mu.hot
	for r := first; r < end; r++ {
		h.entries[r].pins--
		h.entries[r].ended = h.tick
		h.touch(r)
	}
}

// Copied notes that a range was copied, and may be clean, before anybody can find it so.
func (l *Log) Copied(off, n int64) {
	first, end := l.touched(off, n)
	l.mu.Lock()
	defer l.mu.Unlock()
	h := &l.mu.hot
	for r := first; r < end; r++ {
		h.entries[r].ended = h.tick
		h.touch(r)
	}
}

// Unflushed says whether regions are kept until both disks were flushed.
func (l *Log) Unflushed() bool { return l.config.Unflushed }

// BeginFlush is called before a flush of both disks begins. If both succeed, Flushed is given what it returned.
func (l *Log) BeginFlush() (tick uint32) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mu.hot.tick++ // lasts for 136 years of a flush a second
	return l.mu.hot.tick - 1
}

// Flushed notes that everything written before a BeginFlush is durable on both disks.
func (l *Log) Flushed(tick uint32) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mu.hot.flushed = max(l.mu.hot.flushed, tick)
}

// Hot is how many regions may be marked without need, and how many should be at most.
func (l *Log) Hot() (length, limit int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.mu.hot.length, l.mu.hot.limit
}

// busyFor is how many regions Retire looks at before it lets others go on.
const busyFor = 32

// Retire takes back the marks of regions that need none, the least recently written first, until three quarters of what may be
// hot are left. clean says whether nothing in a range is dirty or claimed; it is called under a lock of the log. What is dirty
// leaves the list until it is copied or written. An error leaves marks in the file that nobody needs.
func (l *Log) Retire(clean func(off, n int64) bool) error {
	l.mu.Lock()
	steps := l.mu.hot.length
	for looked := 1; looked <= steps && l.retireLocked(clean); looked++ {
		if looked%busyFor == 0 {
			l.mu.Unlock()
			l.mu.Lock()
		}
	}
	stale := l.mu.anyStale && l.mu.phase != Scanning
	l.mu.Unlock()
	if !stale {
		return nil
	}
	l.io.Lock()
	defer l.io.Unlock()
	return l.writeStale()
}

// retireLocked looks at the first region of the list; false if that is enough.
func (l *Log) retireLocked(clean func(off, n int64) bool) (more bool) {
	h := &l.mu.hot
	if l.mu.phase == Scanning || h.length <= h.limit*3/4 {
		return false
	}
	r := int64(h.first)
	switch e := &h.entries[r]; {
	case e.pins > 0:
		h.touch(r)
	case l.config.Unflushed && e.ended > h.flushed:
		return false // and so are all that come after it
	default:
		h.remove(r)
		if clean(l.bytes(r)) {
			l.forgetLocked(r)
		}
	}
	return true
}

func (l *Log) bytes(r int64) (off, n int64) {
	off = r << l.shift
	return off, min(1<<l.shift, l.config.Size-off)
}

func (l *Log) forgetLocked(r int64) {
	bit := uint64(1) << (r & 63)
	if l.mu.wanted[r>>6]&bit != 0 {
		l.mu.wanted[r>>6] &^= bit
		l.mu.recorded[r>>6] &^= bit
		l.staleLocked(r / perRecord)
	}
}

// Known ends phase Scanning: it is known what has to be copied, and clean says where that is nothing. With Unflushed, nothing is
// clean before the first good flush of both disks.
func (l *Log) Known(clean func(off, n int64) bool) error {
	l.io.Lock()
	defer l.io.Unlock()
	if l.io.header.phase != Scanning {
		return nil
	}
	for r := range l.regions() {
		l.mu.Lock()
		h := &l.mu.hot
		e := &h.entries[r]
		switch {
		case e.pins > 0 || !clean(l.bytes(r)):
		case l.config.Unflushed && (h.flushed == 0 || e.ended > h.flushed):
			h.touch(r)
		default:
			h.remove(r)
			l.forgetLocked(r)
		}
		l.mu.Unlock()
	}
	l.io.header.phase = Copying
	if err := l.rewrite(l.config.Durability == Host); err != nil {
		l.io.header.phase = Scanning
		return l.invalidate(err)
	}
	return nil
}

// Marked says whether the file has a range, for checks.
func (l *Log) Marked(off, n int64) bool {
	first, end := l.touched(off, n)
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.recordedLocked(first, end)
}
