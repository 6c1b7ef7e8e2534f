// SPDX-License-Identifier: Apache-2.0

package mirror

import (
	"fmt"
	"math/rand/v2"
	"testing"
)

// model runs a planner against a source and a target of real bytes, one step of one request at a time and without any
// goroutine, and keeps a second, dumb idea of what may be believed. A byte of the disks is a number: 0 for zero, else the
// write that it came from.
type model struct {
	*planner
	t              *testing.T
	r              *rand.Rand
	size           int64
	source, target []int
	durable        []int // the target, as it was when last flushed
	last           int
	work           []*task
	flushes        []bool // marks of a flush under way: its snapshot was taken
	sticky         bool   // a flush that was given up has failed, and the next one will
}

// task is a request under way.
type task struct {
	o          *op
	copy       bool
	granted    bool
	kind       request
	value      int
	off, end   int64
	sourceDone bool
	sourceFail bool
	pos        int64 // of the copy
	targetFail bool
	planned    bool // for the next piece of the copy, what to write is decided
	writes     []span
	writeZero  bool
	read       []int
}

func (m *model) fail(format string, args ...any) {
	m.t.Helper()
	m.t.Fatalf(format, args...)
}

// begin starts a guest's request.
func (m *model) begin() {
	n := 1 + m.r.Int64N(min(m.size, one[int64](m.r, 3, 40, 200)))
	off := m.r.Int64N(m.size - n + 1)
	if m.r.IntN(3) == 0 {
		off &^= 15
		n = min((n+15)&^15, m.size-off)
	}
	m.last++
	w := &task{o: &op{}, kind: one(m.r, reqData, reqData, reqZero, reqTrim), value: m.last, off: off, end: off + n}
	if w.kind == reqZero {
		w.value = 0
	}
	w.granted = m.beginGuest(w.o, w.kind, off, n)
	m.work = append(m.work, w)
}

func (m *model) beginCopy() {
	o := &op{}
	for n := 0; ; n++ {
		if n > 1000 {
			m.fail("the search does not end")
		}
		f := m.nextCopy(o, one[int64](m.r, 1, 32, 100), span{}, 0)
		if f == foundNone {
			return
		}
		if f == foundWork {
			m.work = append(m.work, &task{o: o, copy: true, granted: true, pos: o.off})
			return
		}
	}
}

// step brings a request on its way.
func (m *model) step(i int) {
	w := m.work[i]
	switch {
	case !w.granted:
		return
	case w.copy:
		m.stepCopy(i)
		return
	case !w.sourceDone:
		w.sourceDone = true
		w.sourceFail = m.r.IntN(12) == 0
		if !w.sourceFail || m.r.IntN(2) == 0 {
			value := w.value
			if w.kind == reqTrim {
				value = one(m.r, 0, w.value)
			}
			for at := w.off; at < w.end; at++ {
				m.source[at] = value
			}
		}
		return
	}
	if !w.planned && !w.sourceFail && w.o.target.end > w.o.target.off {
		w.planned = true
		switch w.kind {
		case reqData:
			w.writes = []span{w.o.target}
		case reqZero:
			w.writes = append(w.writes, w.o.parts...)
		case reqTrim:
			w.writeZero = true
			for at := w.o.target.off; at < w.o.target.end; at++ {
				w.writeZero = w.writeZero && m.source[at] == 0
			}
			if t := w.o.target; w.writeZero {
				w.writes = append(w.writes, m.trimZero(w.o, t.off, t.end)...)
			} else {
				m.copyData(w.o, t.off, t.end)
				w.writes = append(w.writes, t)
			}
		}
		return
	}
	if len(w.writes) > 0 {
		part := w.writes[0]
		w.writes = w.writes[1:]
		fail := m.r.IntN(12) == 0 || m.givenUp(w.o)
		for at := part.off; at < part.end; at++ {
			if !fail || m.r.IntN(2) == 0 {
				switch {
				case fail && m.r.IntN(2) == 0:
					m.target[at] = -77 // nobody knows
				case w.kind == reqTrim && !w.writeZero:
					m.target[at] = m.source[at]
				case w.kind == reqTrim:
					m.target[at] = 0
				default:
					m.target[at] = w.value
				}
			}
		}
		if w.targetFail = fail; fail {
			w.writes = nil
		}
		return
	}
	m.endGuest(w.o, w.sourceFail, w.targetFail)
	m.ended(i)
}

func (m *model) stepCopy(i int) {
	w := m.work[i]
	o := w.o
	switch {
	case w.pos >= o.end || w.sourceFail || w.targetFail:
		m.endCopy(o, w.sourceFail, w.targetFail)
		m.ended(i)
	case !w.planned:
		if w.pos > o.off && m.r.IntN(6) == 0 {
			if from := m.d.Outward(w.pos, 1).End * m.d.Granularity(); from < o.end {
				m.giveBack(o, from)
				m.wakeUp()
			}
		}
		if w.sourceFail = m.r.IntN(15) == 0; w.sourceFail {
			return
		}
		end := min(o.end, w.pos+one[int64](m.r, 8, 16, 64))
		zero := m.source[w.pos] == 0
		for at := w.pos; at < end; at++ {
			if (m.source[at] == 0) != zero {
				end = at
			}
		}
		w.read = append(w.read[:0], m.source[w.pos:end]...)
		w.planned, w.writeZero = true, zero
		if zero {
			w.planned = m.copyZero(o, w.pos, end)
			if !w.planned {
				w.pos = end
			}
		} else {
			m.copyData(o, w.pos, end)
		}
	default:
		w.planned = false
		fail := m.r.IntN(15) == 0 || m.givenUp(o)
		for i, v := range w.read {
			switch {
			case !fail || m.r.IntN(2) == 0:
				m.target[w.pos+int64(i)] = v
			case m.r.IntN(2) == 0:
				m.target[w.pos+int64(i)] = -77 // nobody knows
			}
		}
		w.targetFail = fail
		w.pos += int64(len(w.read))
	}
}

func (m *model) ended(i int) {
	m.work = append(m.work[:i], m.work[i+1:]...)
	m.wakeUp()
}

func (m *model) wakeUp() {
	for _, o := range m.takeWoken() {
		for _, w := range m.work {
			if w.o == o {
				if w.granted {
					m.fail("granted twice")
				}
				w.granted = true
			}
		}
	}
}

// flush begins or ends a flush of the target. A failed one may lose everything since the last good one.
func (m *model) flush() {
	if len(m.flushes) == 0 {
		if m.beginFlush() {
			m.flushes = append(m.flushes, m.r.IntN(3) > 0 && !m.sticky)
			if !m.flushes[0] {
				m.lose()
			}
			copy(m.durable, m.target)
		}
		return
	}
	if !m.flushes[0] {
		m.lose()
		copy(m.durable, m.target)
	}
	m.sticky = false
	m.endFlush(m.flushes[0])
	m.flushes = nil
}

// silence gives up what is under way on the target, done or not; or it ends the silence.
func (m *model) silence() {
	if m.silent && m.r.IntN(3) == 0 {
		m.silent = false
		return
	}
	m.fallSilent()
	if len(m.flushes) > 0 {
		m.sticky = m.sticky || !m.flushes[0]
		m.giveUpFlush()
		m.flushes = nil
	}
}

// givenUp says whether the requests of o to the target are not waited for any more.
func (m *model) givenUp(o *op) bool { return o.epoch != m.epoch }

func (m *model) lose() {
	for at := range m.target {
		if m.r.IntN(4) > 0 {
			m.target[at] = m.durable[at]
		}
	}
}

// look compares what the planner believes with the disks.
func (m *model) look() {
	for i, w := range m.work {
		// Those before in the list that overlap came before, for guests that hold or want claims.
		for _, v := range m.work[:i] {
			if !w.copy && w.o.mode == WriteBlocking && !v.copy && v.o.mode == WriteBlocking && w.granted && v.o.overlaps(w.o.off, w.o.end) {
				m.fail("a guest's write overtook an earlier one")
			}
			if (w.copy || w.o.mode == WriteBlocking) && (v.copy || v.o.mode == WriteBlocking) && w.granted && v.granted && v.o.overlaps(w.o.off, w.o.end) {
				m.fail("two claims overlap")
			}
		}
	}
	g := m.d.Granularity()
	failing := len(m.flushes) > 0 && !m.flushes[0] || m.sticky
	allSame := true
	for c := range m.d.All().End {
		off, end := c*g, min(c*g+g, m.size)
		busy := false
		for _, w := range m.work {
			busy = busy || (w.copy && w.o.overlaps(off, end)) || !w.copy && w.off < end && off < w.end
		}
		if busy || failing {
			allSame = allSame && !failing
			continue
		}
		for at := off; at < end; at++ {
			if m.z.Test(c) && m.target[at] != 0 {
				m.fail("I2: chunk %d is said to be zero, byte %d is %d", c, at, m.target[at])
			}
			if !m.dirty(c) && m.target[at] != m.source[at] {
				m.fail("I1: chunk %d is clean, byte %d is %d, not %d", c, at, m.target[at], m.source[at])
			}
			allSame = allSame && m.target[at] == m.source[at]
		}
		unflushed := m.fresh.AnySet(m.fresh.Outward(off, end-off)) || m.flushing.AnySet(m.flushing.Outward(off, end-off))
		if !unflushed {
			for at := off; at < end; at++ {
				if m.target[at] != m.durable[at] {
					m.fail("U: byte %d is not durable, which nobody knows", at)
				}
			}
		}
	}
	if m.synced() && len(m.work) == 0 && !allSame && !failing {
		m.fail("in sync, but not the same")
	}
}

// TestPlannerModel runs the planner against the model.
func TestPlannerModel(t *testing.T) {
	first := *seedFlag
	if first == 0 {
		first = rand.Uint64N(1 << 40)
	}
	for seed := first; seed < first+400; seed++ {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) { planAtRandom(t, seed) })
		if t.Failed() {
			return
		}
	}
}

func planAtRandom(t *testing.T, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 77))
	size := 100 + r.Int64N(400)
	p, err := newPlanner(size, one[int64](r, 8, 16, 64), one(r, Background, WriteBlocking))
	must(t, err)
	m := &model{planner: p, t: t, r: r, size: size, source: make([]int, size), target: make([]int, size), durable: make([]int, size)}
	for at := int64(0); at < size; {
		n := min(1+r.Int64N(60), size-at)
		v := one(r, 0, -1)
		for i := range n {
			m.source[at+i] = v * (1 + r.IntN(5))
		}
		at += n
	}
	switch r.IntN(3) {
	case 0:
		for at := range m.target {
			m.target[at] = -9
		}
		copy(m.durable, m.target)
		m.markAll()
	default:
		m.targetIsZero()
	}
	scan := func() {
		if m.scanned == size {
			return
		}
		n := int64(1)
		dirty := m.source[m.scanned] != 0
		for m.scanned+n < size && (m.source[m.scanned+n] != 0) == dirty && r.IntN(40) > 0 {
			n++
		}
		m.planner.scan(n, dirty, true)
	}
	for range 300 {
		switch k := r.IntN(100); {
		case k < 12 && len(m.work) < 8:
			m.begin()
		case k < 20 && len(m.work) < 8:
			m.beginCopy()
		case k < 21:
			m.silence()
		case k < 22:
			m.mode = one(r, Background, WriteBlocking)
		case k < 26:
			scan()
		case k < 30:
			m.flush()
		case len(m.work) > 0:
			m.step(r.IntN(len(m.work)))
		}
		m.look()
	}
	// Everything comes to an end.
	m.silent = false
	for n := 0; len(m.work) > 0; n++ {
		if n > 100000 {
			m.fail("requests do not end: %d", len(m.work))
		}
		m.step(r.IntN(len(m.work)))
		m.look()
	}
	for n := 0; !m.caughtUp() || len(m.work) > 0 || m.fresh.Len() > 0 || m.flushing.Len() > 0; n++ {
		if n > 100000 {
			m.fail("the copy does not end")
		}
		scan()
		m.beginCopy()
		if len(m.work) > 0 {
			m.step(0)
		}
		if m.caughtUp() || len(m.flushes) > 0 {
			m.flush()
		}
		m.look()
	}
	if len(m.claims) != 0 || m.copying != 0 || m.mirroring != 0 || m.writers != 0 || m.left() != 0 {
		m.fail("left: %d claims, %d copying, %d mirroring, %d writers", len(m.claims), m.copying, m.mirroring, m.writers)
	}
	for at := range m.source {
		if m.source[at] != m.target[at] || m.source[at] != m.durable[at] {
			m.fail("at the end byte %d is %d on the target and %d durably, not %d", at, m.target[at], m.durable[at], m.source[at])
		}
	}
}
