// SPDX-License-Identifier: Apache-2.0

package qcow2

import (
	"sync"
	"time"
)

// cleaner takes tables out of the caches that nobody used for an interval. It has a timer only while there is something in them.
type cleaner struct {
	sync.Mutex // held while it cleans
	timer      *time.Timer
	armed      bool
	closed     bool
}

// armCleaner sees to it that what gets into the caches will leave them. It is enough to call it when a slice of an L2 table does:
// refcounts are not used without. Not under the locks of the caches.
func (d *Disk) armCleaner() {
	if d.options.cleanInterval == 0 {
		return
	}
	c := &d.cleaner
	c.Lock()
	defer c.Unlock()
	if c.armed || c.closed {
		return
	}
	c.armed = true
	if c.timer == nil {
		c.timer = time.AfterFunc(d.options.cleanInterval, d.clean)
	} else {
		c.timer.Reset(d.options.cleanInterval)
	}
}

func (d *Disk) clean() {
	c := &d.cleaner
	c.Lock()
	defer c.Unlock()
	if c.closed {
		return
	}
	slices, blocks := d.maps.clean(), d.refs.clean()
	d.plain.clean()
	if c.armed = slices || blocks; c.armed {
		c.timer.Reset(d.options.cleanInterval)
	}
}

func (c *cleaner) close() {
	c.Lock()
	defer c.Unlock()
	c.closed = true
	if c.timer != nil {
		c.timer.Stop()
	}
}

// clean drops what was not used since the last call, and says whether anything is left.
func (m *maps) clean() (left bool) {
	m.Lock()
	defer m.Unlock()
	for s := m.recent.prev; s != &m.recent && s.used < m.round; {
		unused := s
		s = s.prev
		if unused.hi == 0 && !unused.writing {
			m.takeOut(unused)
			delete(m.slices, unused.off)
		}
	}
	m.round++
	return len(m.slices) > 0
}

func (r *refcounts) clean() (left bool) {
	r.Lock()
	defer r.Unlock()
	for index, b := range r.blocks {
		if b.used <= r.cleaned && !b.dirty {
			delete(r.blocks, index)
		}
	}
	r.cleaned = r.clock
	return len(r.blocks) > 0
}

func (l *lastDecompressed) clean() {
	l.Lock()
	defer l.Unlock()
	l.host, l.data = 0, nil
}
