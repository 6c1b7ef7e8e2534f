// SPDX-License-Identifier: Apache-2.0

package intent

// hot are the regions that may be clean by now although they are marked. Those that guests wrote stay for a while, since guests
// write there again; those that were copied only wait until some can be taken back together.
type hot struct {
	entries []entry
	written list
	copied  list
	limit   int // how many of written stay
	enough  int // of copied to take them back
	// Writes that ended up to a tick are durable on both disks if a flush of each that began at it succeeded.
	tick, flushed uint32
}

// list has the least recently touched region first. It is made of indices, so that it takes no allocation.
type list struct {
	first, last int32 // none if it is empty
	length      int
}

type entry struct {
	next, previous int32 // unlisted in both if it is in no list
	copied         bool  // it is in that list
	pins           uint32
	ended          uint32 // the tick at which the last write ended
}

const (
	none     = -1
	unlisted = -2

	// copiedLimit is how many regions that were copied wait to be taken back, and unflushedLimit how many do if that takes a flush.
	copiedLimit, unflushedLimit = 16, 128
)

func (h *hot) init(regions int64, limit int, unflushed bool) {
	*h = hot{entries: make([]entry, regions), written: list{none, none, 0}, copied: list{none, none, 0}, limit: limit, enough: copiedLimit, tick: 1}
	if unflushed {
		h.enough = unflushedLimit
	}
	for i := range h.entries {
		h.entries[i].next, h.entries[i].previous = unlisted, unlisted
	}
}

func (h *hot) list(copied bool) *list {
	if copied {
		return &h.copied
	}
	return &h.written
}

// touch makes a region the last one of a list.
func (h *hot) touch(r int64, copied bool) {
	i, l := int32(r), h.list(copied)
	if l.last == i {
		return
	}
	h.remove(r)
	e := &h.entries[i]
	e.previous, e.next, e.copied = l.last, none, copied
	if l.last == none {
		l.first = i
	} else {
		h.entries[l.last].next = i
	}
	l.last = i
	l.length++
}

// full says whether Retire is due.
func (h *hot) full() bool { return h.written.length > h.limit || h.copied.length >= h.enough }

func (h *hot) remove(r int64) {
	e := &h.entries[r]
	if e.next == unlisted {
		return
	}
	l := h.list(e.copied)
	if e.previous == none {
		l.first = e.next
	} else {
		h.entries[e.previous].next = e.next
	}
	if e.next == none {
		l.last = e.previous
	} else {
		h.entries[e.next].previous = e.previous
	}
	e.next, e.previous = unlisted, unlisted
	l.length--
}

// Begin begins a write of a range if it is marked. Until Done it stays so.
func (l *Log) Begin(off, n int64) (marked bool) { return l.begin(off, n, false) }

// Done ends a write that was begun: what it left dirty must be known by now. It says whether Retire is due.
func (l *Log) Done(off, n int64) (full bool) { return l.done(off, n, false) }

// BeginCopy is Begin for a copy, which comes to each region once.
func (l *Log) BeginCopy(off, n int64) (marked bool) { return l.begin(off, n, true) }

// DoneCopy is Done for a copy.
func (l *Log) DoneCopy(off, n int64) (full bool) { return l.done(off, n, true) }

func (l *Log) begin(off, n int64, copied bool) (marked bool) {
	first, end := l.touched(off, n)
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.recordedLocked(first, end) {
		return false
	}
	for r := first; r < end; r++ {
		l.mu.hot.entries[r].pins++
		if !copied {
			l.mu.hot.touch(r, false)
		}
	}
	return true
}

func (l *Log) done(off, n int64, copied bool) (full bool) {
	first, end := l.touched(off, n)
	l.mu.Lock()
	defer l.mu.Unlock()
	h := &l.mu.hot
	for r := first; r < end; r++ {
		e := &h.entries[r]
		e.pins--
		e.ended = h.tick
		h.touch(r, copied && (e.next == unlisted || e.copied)) // where guests write they will again
	}
	return h.full()
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

// Full says whether Retire is due.
func (l *Log) Full() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.mu.hot.full()
}

// busyFor is how many regions Retire looks at before it lets others go on.
const busyFor = 32

// Retire takes back the marks of regions that need none: those that were copied, and of those that were written the least recently
// written first until three quarters of what may be hot are left; with all, until none is. clean says whether nothing in a range is
// dirty or claimed; it is called under a lock of the log. What is dirty leaves the lists until it is copied or written. An error
// leaves marks in the file that nobody needs.
func (l *Log) Retire(clean func(off, n int64) bool, all bool) error {
	l.mu.Lock()
	h := &l.mu.hot
	keep := h.limit * 3 / 4
	if all {
		keep = 0
	}
	for _, of := range []struct {
		list *list
		keep int
	}{{&h.copied, 0}, {&h.written, keep}} {
		steps := of.list.length
		for looked := 1; looked <= steps && l.retireLocked(of.list, of.keep, clean); looked++ {
			if looked%busyFor == 0 {
				l.mu.Unlock()
				l.mu.Lock()
			}
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

// retireLocked looks at the first region of a list; false if that is enough.
func (l *Log) retireLocked(from *list, keep int, clean func(off, n int64) bool) (more bool) {
	h := &l.mu.hot
	if l.mu.phase != Copying && l.mu.phase != Ready || from.length <= keep {
		return false
	}
	r := int64(from.first)
	switch e := &h.entries[r]; {
	case e.pins > 0:
		h.touch(r, e.copied)
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
			h.touch(r, true)
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

// Missing finds a region that is not in the file although need says that it has to be; need is called under a lock of the log.
func (l *Log) Missing(need func(off, n int64) bool) (off, n int64, found bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for r := range l.regions() {
		if off, n := l.bytes(r); !l.recordedLocked(r, r+1) && need(off, n) {
			return off, n, true
		}
	}
	return 0, 0, false
}
