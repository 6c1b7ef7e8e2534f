// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"slices"
	"sync"
)

// trimmed marks a sector that was trimmed after it was written: it reads as
// zeroes or as before, whichever the disk likes.
const trimmed content = 1 << 31

// model remembers what each sector of the disk must read as: the first
// content, and what the guest was told to be written since.
type model struct {
	pattern

	// sectors is read and changed by whoever holds a claim on the range.
	sectors []content

	mu struct {
		sync.Mutex
		claims []span
		last   content
	}
}

// span is a range of sectors.
type span struct{ first, end int64 }

func (s span) sectors() int64 { return s.end - s.first }
func (s span) offset() int64  { return s.first * sectorSize }
func (s span) bytes() int64   { return s.sectors() * sectorSize }

func newModel(bytes int64, seed uint64) *model {
	return &model{pattern: pattern{seed}, sectors: make([]content, bytes/sectorSize)}
}

// claim reserves a range for one request, or says that it overlaps another
// one: what overlapping requests leave behind nobody can tell.
func (m *model) claim(s span) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, other := range m.mu.claims {
		if s.first < other.end && other.first < s.end {
			return false
		}
	}
	m.mu.claims = append(m.mu.claims, s)
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

// wrote notes that a claimed range has this content now.
func (m *model) wrote(s span, c content) {
	for i := s.first; i < s.end; i++ {
		m.sectors[i] = c
	}
}

// trimmed notes that the content of a claimed range is not needed any more.
func (m *model) trimmed(s span) {
	for i := s.first; i < s.end; i++ {
		if m.sectors[i] != 0 {
			m.sectors[i] |= trimmed
		}
	}
}

// check compares data that was read with what must be there.
func (m *model) check(data []byte, first int64) error {
	var want [sectorSize]byte
	for i := first; len(data) > 0; i, data = i+1, data[sectorSize:] {
		got, c := data[:sectorSize], m.sectors[i]
		if c&trimmed != 0 && bytes.Equal(got, zeroSector[:]) {
			continue
		}
		m.fill(want[:], i, c&^trimmed)
		if !bytes.Equal(got, want[:]) {
			return &mismatch{sector: i, why: m.explain(got, i)}
		}
	}
	return nil
}

var zeroSector [sectorSize]byte

// mismatch is a sector that does not read as it must.
type mismatch struct {
	sector int64
	why    string
}

func (e *mismatch) Error() string {
	return fmt.Sprintf("wrong data at byte %d: %s", e.sector*sectorSize, e.why)
}

// explain says what is wrong with a sector.
func (m *model) explain(got []byte, i int64) string {
	should := "the first content or a write"
	if m.sectors[i] == 0 {
		should = "zeroes"
	}
	if bytes.Equal(got, zeroSector[:]) {
		return "zeroes in place of " + should
	}
	var old [sectorSize]byte
	m.mu.Lock()
	last := m.mu.last
	m.mu.Unlock()
	for c := content(1); c <= last; c++ {
		if m.fill(old[:], i, c); bytes.Equal(got, old[:]) {
			return fmt.Sprintf("write %d in place of %s (%d)", c, should, m.sectors[i]&^trimmed)
		}
	}
	return "data that was never written there, in place of " + should
}
