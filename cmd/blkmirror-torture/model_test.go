// SPDX-License-Identifier: Apache-2.0

package main

import "testing"

// What a sector may have, by what became of the requests for it.
func TestJournal(t *testing.T) {
	s := span{3, 5}
	for _, test := range []struct {
		name string
		do   func(m *model)
		may  []content
		not  []content
	}{
		{"nothing", func(*model) {}, []content{0}, []content{1}},
		{"a write", func(m *model) { m.wrote(s, 1) }, []content{1}, []content{0, 2}},
		{"a write over a write", func(m *model) { m.wrote(s, 1); m.wrote(s, 2) }, []content{2}, []content{0, 1}},
		{"a lost answer", func(m *model) { m.wrote(s, 1); m.doubted(s, 2, false) }, []content{1, 2}, []content{0}},
		{"a lost answer and a write", func(m *model) { m.doubted(s, 1, false); m.wrote(s, 2) }, []content{2}, []content{0, 1}},
		{"a late one", func(m *model) { m.doubted(s, 1, true); m.wrote(s, 2) }, []content{1, 2}, []content{0}},
		{"a late one whose server died", func(m *model) { m.doubted(s, 1, true); m.wrote(s, 2); m.close() }, []content{1, 2}, []content{0}},
		{"and a write after that", func(m *model) { m.doubted(s, 1, true); m.close(); m.wrote(s, 2) }, []content{2}, []content{0, 1}},
		{"a trim", func(m *model) { m.wrote(s, 1); m.trimmed(s) }, []content{0, 1}, []content{2}},
		{"a write after a trim", func(m *model) { m.wrote(s, 1); m.trimmed(s); m.wrote(s, 2) }, []content{2}, []content{0, 1}},
	} {
		t.Run(test.name, func(t *testing.T) {
			m := newModel(8*sectorSize, 7)
			m.mu.last = 2
			test.do(m)
			data := make([]byte, s.bytes())
			for _, c := range test.may {
				m.fill(data, s.first, c)
				if err := m.check(data, s.first); err != nil {
					t.Error(err)
				}
			}
			for _, c := range test.not {
				m.fill(data, s.first, c)
				if m.check(data, s.first) == nil {
					t.Errorf("content %d passes", c)
				}
			}
			m.fill(data, s.first+1, 1)
			if m.check(data, s.first) == nil {
				t.Error("data of another place passes")
			}
		})
	}
}

// What is compared of a copy leaves out what was written after the mark, or may be.
func TestMark(t *testing.T) {
	m := newModel(16*sectorSize, 7)
	m.claim(span{0, 1}, true)
	m.doubted(span{2, 3}, 1, true)
	m.doubted(span{4, 5}, 1, false)
	m.beginMark()
	m.claim(span{6, 7}, true)
	m.claim(span{8, 9}, false)
	for i, want := range []bool{true, false, true, false, false, false, true, false, false} {
		if m.marked(int64(i)) != want {
			t.Errorf("sector %d is marked: %v", i, !want)
		}
	}
	if m.claim(span{6, 10}, true) {
		t.Error("two requests for one sector")
	}
}

func TestGrowth(t *testing.T) {
	series := func(f func(i int) int64) (s []sample) {
		for i := range 90 {
			s = append(s, sample{descriptors: f(i)})
		}
		return s
	}
	for name, test := range map[string]struct {
		f    func(i int) int64
		flat bool
	}{
		"constant":        {func(int) int64 { return 50 }, true},
		"noise":           {func(i int) int64 { return 50 + int64(i*7%5) }, true},
		"warming up":      {func(i int) int64 { return int64(min(i, 30)) }, true},
		"a leak":          {func(i int) int64 { return 50 + int64(i) }, false},
		"a peak now":      {func(i int) int64 { return 50 + int64(i/89*1000) }, true},
		"less and less":   {func(i int) int64 { return 500 - int64(i) }, true},
		"a tenth is flat": {func(i int) int64 { return 1000 + int64(i) }, true},
	} {
		if _, _, flat := growth(series(test.f), func(s sample) int64 { return s.descriptors }, 3, 10); flat != test.flat {
			t.Errorf("%s: flat is %v", name, flat)
		}
	}
}
