// SPDX-License-Identifier: Apache-2.0

package powerloss

import (
	"bytes"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"slices"

	"github.com/blkmirror/blkmirror/daemon/state"
)

// folder is the state directory of a host.
type folder struct{ *host }

var _ state.Folder = folder{}

// rename is a step that happens to names.
func (f folder) rename(from string, to func() (change, error)) error {
	return f.step(stepFolder, func() error {
		if _, ok := f.names[from]; !ok && from != "" {
			return &fs.PathError{Op: "open", Path: from, Err: fs.ErrNotExist}
		}
		s, err := to()
		if err == nil {
			s.apply(f.names)
			f.changes = append(f.changes, s)
		}
		return err
	})
}

func (f folder) Make(name string) (state.File, error) {
	c := &content{}
	err := f.rename("", func() (change, error) {
		if _, ok := f.names[name]; ok {
			return change{}, &fs.PathError{Op: "open", Path: name, Err: fs.ErrExist}
		}
		return change{name: name, set: c}, nil
	})
	return opened{f.host, c}, err
}

func (f folder) Create(name string) (state.File, error) {
	if file, err := f.Open(name); err == nil {
		return file, file.Truncate(0)
	}
	return f.Make(name)
}

func (f folder) Open(name string) (state.File, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	c, ok := f.names[name]
	if !ok {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return opened{f.host, c}, nil
}

func (f folder) Link(name, second string) error {
	return f.rename(name, func() (change, error) {
		if _, ok := f.names[second]; ok {
			return change{}, &fs.PathError{Op: "link", Path: second, Err: fs.ErrExist}
		}
		return change{name: second, set: f.names[name]}, nil
	})
}

func (f folder) Rename(from, to string) error {
	return f.rename(from, func() (change, error) { return change{name: to, set: f.names[from], remove: from}, nil })
}

func (f folder) Remove(name string) error {
	return f.rename(name, func() (change, error) { return change{remove: name}, nil })
}

func (f folder) Names() ([]string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Sorted(maps.Keys(f.names)), nil
}

func (f folder) Sync() error {
	return f.step(stepFolderSync, func() error {
		f.durable, f.changes = maps.Clone(f.names), nil
		return nil
	})
}

func (f folder) Close() error { return nil }

// content is what is in a file.
type content struct {
	now, synced []byte
	pending     []piece // since the file was synced
}

// piece is a write, or with no data the end of the file at off.
type piece struct {
	off  int64
	data []byte
}

const sector = 512

func (p piece) apply(to []byte) []byte {
	if p.data == nil {
		return to[:min(int(p.off), len(to))]
	}
	if more := int(p.off) + len(p.data) - len(to); more > 0 {
		to = append(to, make([]byte, more)...)
	}
	copy(to[p.off:], p.data)
	return to
}

// left is what is there after a host ended: of each write that was not synced all, nothing, or some of its sectors, and of one that
// made the file longer perhaps its length alone.
func (c *content) left(random *rand.Rand, power bool) *content {
	if !power {
		return &content{bytes.Clone(c.now), bytes.Clone(c.synced), slices.Clone(c.pending)}
	}
	found := bytes.Clone(c.synced)
	for _, p := range c.pending {
		switch fate := random.IntN(4); {
		case fate == 0, fate == 1 && p.data == nil:
			found = p.apply(found)
		case fate == 1:
			for at := 0; at < len(p.data); at += sector {
				if random.IntN(2) == 0 {
					found = piece{p.off + int64(at), p.data[at:min(at+sector, len(p.data))]}.apply(found)
				}
			}
		case fate == 2 && int(p.off)+len(p.data) > len(found):
			found = piece{int64(len(found)), make([]byte, int(p.off)+len(p.data)-len(found))}.apply(found)
		}
	}
	return &content{found, bytes.Clone(found), nil}
}

// opened is an open file.
type opened struct {
	*host
	*content
}

func (f opened) write(p piece) error {
	return f.step(stepFile, func() error {
		f.now, f.pending = p.apply(f.now), append(f.pending, p)
		return nil
	})
}

func (f opened) WriteAt(p []byte, off int64) (int, error) {
	return len(p), f.write(piece{off, append([]byte{}, p...)})
}

func (f opened) Truncate(size int64) error { return f.write(piece{size, nil}) }

func (f opened) ReadAt(p []byte, off int64) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if off >= int64(len(f.now)) {
		return 0, io.EOF
	}
	n := copy(p, f.now[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (f opened) Sync() error {
	return f.step(stepFileSync, func() error {
		f.synced, f.pending = bytes.Clone(f.now), nil
		return nil
	})
}

func (f opened) Close() error { return nil }
