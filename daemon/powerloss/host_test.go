// SPDX-License-Identifier: Apache-2.0

package powerloss

import (
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
)

// host is a machine with one folder of files and some images. All that changes its storage is a step, and steps come one after
// the other, so that a cut falls between two of them and leaves all of the storage as of one moment.
type host struct {
	mu      sync.Mutex
	random  *rand.Rand
	boot    [16]byte
	inodes  uint64 // the last one
	names   map[string]*content
	durable map[string]*content // what was found in the folder's own blocks now
	changes []change            // of names, since the folder was synced
	images  map[string]*image
	cut     *cut // nil if none is to come
}

// kind is what a step does.
type kind uint8

const (
	stepFolder     kind = iota // a name
	stepFolderSync             //
	stepFile                   // the content of a file
	stepFileSync               //
	stepImage                  // a write to an image
	stepImageFlush             //
	kinds
)

// cut is the end of a host: at a step, or when somebody asks for it.
type cut struct {
	power  bool        // else the process dies alone
	of     [kinds]bool // what steps count
	in     int         // at which of them; 0 for none
	before bool        // before the step
	frozen func()      // called at the moment
	left   *host       // what is there afterwards; nil before
	done   chan struct{}
}

func newHost(random *rand.Rand) *host {
	h := &host{random: random, names: map[string]*content{}, durable: map[string]*content{}, images: map[string]*image{}}
	h.reboot()
	return h
}

func (h *host) reboot() {
	for i := range h.boot {
		h.boot[i] = byte(h.random.Uint32())
	}
}

// step changes the storage.
func (h *host) step(k kind, do func() error) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	c := h.cut
	due := false
	if c != nil && c.left == nil && c.in > 0 && c.of[k] {
		c.in--
		due = c.in == 0
	}
	if due && c.before {
		h.cutLocked()
	}
	err := do()
	if due && !c.before {
		h.cutLocked()
	}
	return err
}

// light has the host end at one of the next steps. From then on it only looks to those who use it as if it went on.
func (h *host) light(in int, of ...kind) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.cut.of, h.cut.in = [kinds]bool{}, in
	for _, k := range of {
		h.cut.of[k] = true
	}
}

// end ends the host now, unless it has ended before.
func (h *host) end() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.cut.left == nil {
		h.cutLocked()
	}
}

func (h *host) cutLocked() {
	c := h.cut
	c.left = &host{random: h.random, boot: h.boot, inodes: h.inodes, durable: map[string]*content{}, images: map[string]*image{}}
	c.frozen()
	was := map[*content]*content{}
	take := func(f *content) *content {
		if was[f] == nil {
			was[f] = f.left(h.random, c.power)
		}
		return was[f]
	}
	each := func(names map[string]*content) map[string]*content {
		now := map[string]*content{}
		for _, name := range slices.Sorted(maps.Keys(names)) {
			now[name] = take(names[name])
		}
		return now
	}
	if c.power {
		c.left.names = each(h.namesLeft())
		c.left.durable = maps.Clone(c.left.names)
		c.left.reboot()
	} else {
		c.left.names, c.left.durable = each(h.names), each(h.durable)
		for _, s := range h.changes {
			if s.set != nil {
				s.set = take(s.set)
			}
			c.left.changes = append(c.left.changes, s)
		}
	}
	for _, path := range slices.Sorted(maps.Keys(h.images)) {
		c.left.images[path] = h.images[path].left(c.left, c.power)
	}
	close(c.done)
}

// ---- Names

// change is what happened to names: one got a file, another or the same one lost its own.
type change struct {
	name   string
	set    *content // nil for none
	remove string   // "" for none
}

func (s change) apply(names map[string]*content) {
	if s.set != nil {
		names[s.name] = s.set
	}
	if s.remove != "" {
		delete(names, s.remove)
	}
}

// namesLeft are the names that are there after a loss of power: with some file systems what happened up to a moment, with others
// any part of it; of a renaming perhaps both names are left.
func (h *host) namesLeft() map[string]*content {
	names := maps.Clone(h.durable)
	ordered := h.random.IntN(2) == 0
	most := h.random.IntN(len(h.changes) + 1)
	for i, s := range h.changes {
		switch {
		case ordered && i >= most:
			return names
		case ordered:
		case h.random.IntN(2) == 0:
			continue
		case s.set != nil && s.remove != "" && h.random.IntN(4) == 0:
			s.remove = ""
		}
		s.apply(names)
	}
	return names
}
