// SPDX-License-Identifier: Apache-2.0

package blocktest

import (
	"maps"
	"math/rand/v2"
	"slices"

	"github.com/blkmirror/blkmirror/block"
)

// mostPending is how many sectors a disk keeps in its volatile cache before it writes them all, as disks do by
// themselves.
const mostPending = 64 << 20 / sector

// unsynced holds, for each sector that changed since it was last made durable, what it held after each change.
type unsynced map[int64][]version

type version struct {
	request uint64
	content sectorContent
}

type sectorContent struct {
	data      [sector]byte
	allocated bool
	zeroed    bool
}

func (ps pages) sector(number int64) (c sectorContent) {
	if pg := ps[number/pageSectors]; pg != nil {
		at := number % pageSectors
		copy(c.data[:], pg.data[at*sector:])
		c.allocated = pg.allocated&(1<<at) != 0
		c.zeroed = pg.zeroed&(1<<at) != 0
	}
	return c
}

func (ps pages) setSector(number int64, c *sectorContent) {
	switch {
	case !c.allocated:
		ps.punch(number*sector, sector)
	case c.zeroed:
		ps.zero(number*sector, sector)
	default:
		ps.write(c.data[:], number*sector)
	}
}

// changedLocked notes what a request made of the sectors it touched: durable at once with FUA, else up to chance.
func (m *Mem) changedLocked(c Call) {
	end := min(c.Off+c.Len, m.mu.size)
	for number := c.Off / sector; number*sector < end; number++ {
		content := m.mu.pages.sector(number)
		if c.Flags&block.FUA != 0 {
			m.mu.durable.setSector(number, &content)
			delete(m.mu.pending, number)
			continue
		}
		versions := m.mu.pending[number]
		if len(versions) > 0 && versions[len(versions)-1].request == c.request {
			versions[len(versions)-1].content = content
			continue
		}
		m.mu.pending[number] = append(versions, version{c.request, content})
	}
	if len(m.mu.pending) > mostPending {
		m.flushLocked()
	}
}

func (m *Mem) flushLocked() {
	for number, versions := range m.mu.pending {
		m.mu.durable.setSector(number, &versions[len(versions)-1].content)
	}
	clear(m.mu.pending)
}

// Crash returns a disk as it may be found after the host lost its power: everything that was flushed, and of each later
// request all of it, nothing, or some of its sectors. The seed decides. The disk itself goes on as if nothing had been.
func (m *Mem) Crash(seed uint64) *Mem {
	random := rand.New(rand.NewPCG(seed, 0x5eed))
	m.mu.Lock()
	defer m.mu.Unlock()
	found := m.mu.durable.clone()
	const none, all, torn = 0, 1, 2
	fate := map[uint64]int{}
	for _, number := range slices.Sorted(maps.Keys(m.mu.pending)) { // chance must not come from the order of a map
		for _, v := range m.mu.pending[number] {
			f, known := fate[v.request]
			if !known {
				f = []int{none, all, torn}[random.IntN(3)]
				fate[v.request] = f
			}
			if f == all || f == torn && random.IntN(2) == 0 {
				found.setSector(number, &v.content)
			}
		}
	}
	return m.copyLocked(found, found.clone())
}

// Copy returns a disk that holds everything written, as it is found after the process died but not the host. What was
// not flushed is not durable there either.
func (m *Mem) Copy() *Mem {
	m.mu.Lock()
	defer m.mu.Unlock()
	after := m.copyLocked(m.mu.durable.clone(), m.mu.pages.clone())
	for number, versions := range m.mu.pending {
		after.mu.pending[number] = slices.Clone(versions)
	}
	after.mu.requests = m.mu.requests
	return after
}

func (m *Mem) copyLocked(durable, visible pages) *Mem {
	after := NewMem(m.options)
	after.mu.size, after.mu.durable, after.mu.pages = m.mu.size, durable, visible
	return after
}

func (ps pages) clone() pages {
	c := make(pages, len(ps))
	for number, pg := range ps {
		twin := *pg
		c[number] = &twin
	}
	return c
}
