// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"sync"
)

// sectorSize is the unit in which guests write and the model remembers.
const sectorSize = 512

// content is what a sector was written with: 0 are zeroes, any other number is a pattern of its own.
type content uint32

// span is a range of sectors.
type span struct{ first, end int64 }

func (s span) offset() int64 { return s.first * sectorSize }
func (s span) bytes() int64  { return (s.end - s.first) * sectorSize }

// model is the journal of what guests were told to be done on one disk. It lives in this process, which nobody kills.
//
// A request whose answer was lost leaves a doubt on its sectors: what it would have written may be there, too. An acknowledged
// write ends the doubts that came before it, but for those that are open: whoever got that request may still carry it out.
type model struct {
	seed uint64

	mu struct {
		sync.Mutex
		sectors []content
		doubts  map[int64][]doubt // by sector
		claims  []span
		last    content
		mark    []bool // sectors that a request was sent for since beginMark; nil before
	}
}

type doubt struct {
	content content
	open    bool
}

func newModel(bytes int64, seed uint64) *model {
	m := &model{seed: seed}
	m.mu.sectors = make([]content, bytes/sectorSize)
	m.mu.doubts = map[int64][]doubt{}
	return m
}

// claim reserves a range for one request, or says that it overlaps another one: what overlapping requests leave behind
// nobody can tell.
func (m *model) claim(s span, writes bool) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, other := range m.mu.claims {
		if s.first < other.end && other.first < s.end {
			return false
		}
	}
	m.mu.claims = append(m.mu.claims, s)
	if m.mu.mark != nil && writes {
		for i := s.first; i < s.end; i++ {
			m.mu.mark[i] = true
		}
	}
	return true
}

func (m *model) release(s span) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if i := slices.Index(m.mu.claims, s); i >= 0 {
		m.mu.claims = slices.Delete(m.mu.claims, i, i+1)
	}
}

// fresh returns a content that no sector has had.
func (m *model) fresh() content {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mu.last++
	return m.mu.last
}

// fill makes the bytes of sectors. No two contents have a sector in common, and no content has the same bytes in two sectors,
// so that data in the wrong place shows as well as old data.
func (m *model) fill(data []byte, first int64, c content) {
	if c == 0 {
		clear(data)
		return
	}
	for ; len(data) > 0; data, first = data[sectorSize:], first+1 {
		state := mix(mix(m.seed^uint64(c)) + uint64(first))
		for i := 0; i < sectorSize; i += 8 {
			state += 0x9e3779b97f4a7c15
			binary.LittleEndian.PutUint64(data[i:], mix(state))
		}
	}
}

// mix scatters the bits of a number (the finish of splitmix64).
func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// wrote notes that a claimed range has this content now.
func (m *model) wrote(s span, c content) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := s.first; i < s.end; i++ {
		m.mu.sectors[i] = c
		m.settleLocked(i)
	}
}

// settleLocked forgets the doubts that an acknowledged write has ended.
func (m *model) settleLocked(i int64) {
	doubts, there := m.mu.doubts[i]
	if !there {
		return
	}
	if doubts = slices.DeleteFunc(doubts, func(d doubt) bool { return !d.open }); len(doubts) == 0 {
		delete(m.mu.doubts, i)
		return
	}
	m.mu.doubts[i] = doubts
}

// doubted notes that a claimed range may have this content, now or, if open, later.
func (m *model) doubted(s span, c content, open bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := s.first; i < s.end; i++ {
		m.mu.doubts[i] = append(m.mu.doubts[i], doubt{c, open})
	}
}

// trimmed notes that a claimed range may read as zeroes from now on, and may become zero as long as it is not written again.
func (m *model) trimmed(s span) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := s.first; i < s.end; i++ {
		if m.mu.sectors[i] != 0 {
			m.mu.doubts[i] = append(m.mu.doubts[i], doubt{})
		}
	}
}

// close notes that nobody is left who could carry out a request that was not answered: the process that had them is dead, and
// what it wrote to is its own file.
func (m *model) close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, doubts := range m.mu.doubts {
		for i := range doubts {
			doubts[i].open = false
		}
	}
}

// beginMark begins to note which sectors requests are sent for.
func (m *model) beginMark() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mu.mark = make([]bool, len(m.mu.sectors))
	for _, s := range m.mu.claims {
		for i := s.first; i < s.end; i++ {
			m.mu.mark[i] = true
		}
	}
	for i, doubts := range m.mu.doubts {
		for _, d := range doubts {
			m.mu.mark[i] = m.mu.mark[i] || d.open
		}
	}
}

// marked says whether a request was sent for a sector since beginMark, or may still be carried out.
func (m *model) marked(sector int64) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.mu.mark == nil || m.mu.mark[sector]
}

// check compares data that was read from claimed sectors, or from a disk that nobody uses, with what must be there.
func (m *model) check(data []byte, first int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	var want [sectorSize]byte
	is := func(got []byte, i int64, c content) bool {
		m.fill(want[:], i, c)
		return bytes.Equal(got, want[:])
	}
	for i := first; len(data) > 0; i, data = i+1, data[sectorSize:] {
		got := data[:sectorSize]
		if is(got, i, m.mu.sectors[i]) || slices.ContainsFunc(m.mu.doubts[i], func(d doubt) bool { return is(got, i, d.content) }) {
			continue
		}
		return fmt.Errorf("wrong data at byte %d (sector %d): %s", i*sectorSize, i, m.explainLocked(got, i))
	}
	return nil
}

// explainLocked says what is wrong with a sector.
func (m *model) explainLocked(got []byte, i int64) string {
	should := fmt.Sprintf("in place of content %d", m.mu.sectors[i])
	if doubts := m.mu.doubts[i]; len(doubts) > 0 {
		should += fmt.Sprintf(" or one of %v", doubts)
	}
	var old [sectorSize]byte
	for c := range m.mu.last + 1 {
		if m.fill(old[:], i, c); bytes.Equal(got, old[:]) {
			return fmt.Sprintf("content %d %s", c, should)
		}
	}
	return "what was never written there " + should
}
