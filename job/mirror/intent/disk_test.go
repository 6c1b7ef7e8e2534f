// SPDX-License-Identifier: Apache-2.0

package intent

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"sync"
)

var errDisk = errors.New("no space left on device")

// disk is a file of which a crash of the host keeps only what was synced, and of the rest what chance says.
type disk struct {
	mu      sync.Mutex
	now     []byte
	synced  []byte
	pending []piece
	broken  func(write bool) bool // whether a step fails; nil for never
	looked  func()                // called at each step, before and after it; nil for nobody
	random  *rand.Rand
}

type piece struct {
	off  int64
	data []byte
}

func put(to []byte, p piece) []byte {
	if end := int(p.off) + len(p.data); end > len(to) {
		to = append(to, make([]byte, end-len(to))...)
	}
	copy(to[p.off:], p.data)
	return to
}

func (d *disk) look() {
	if d.looked != nil {
		d.looked()
	}
}

func (d *disk) WriteAt(p []byte, off int64) (int, error) {
	d.look()
	defer d.look()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.broken != nil && d.broken(true) {
		w := piece{off, bytes.Clone(p[:d.random.IntN(len(p)+1)])} // a part of it may be there
		d.now, d.pending = put(d.now, w), append(d.pending, w)
		return len(w.data), errDisk
	}
	w := piece{off, bytes.Clone(p)}
	d.now, d.pending = put(d.now, w), append(d.pending, w)
	return len(p), nil
}

func (d *disk) Truncate(size int64) error {
	d.look()
	defer d.look()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.broken != nil && d.broken(true) {
		return errDisk
	}
	d.now = d.now[:size]
	d.synced, d.pending = nil, nil // ordered by the file system's journal
	return nil
}

// Sync that fails drops what was not durable from there on, as kernels do.
func (d *disk) Sync() error {
	d.look()
	defer d.look()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.broken != nil && d.broken(false) {
		d.synced = d.afterPowerLossLocked(d.random)
		d.pending = nil
		return errDisk
	}
	d.synced, d.pending = bytes.Clone(d.now), nil
	return nil
}

func (d *disk) Close() error { return nil }

func (d *disk) ReadAt(p []byte, off int64) (int, error) { return reader(d.afterKill()).ReadAt(p, off) }

func (d *disk) afterKill() []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	return bytes.Clone(d.now)
}

func (d *disk) afterPowerLoss(r *rand.Rand) []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.afterPowerLossLocked(r)
}

func (d *disk) afterPowerLossLocked(r *rand.Rand) []byte {
	found := bytes.Clone(d.synced)
	for _, w := range d.pending {
		switch r.IntN(3) {
		case 0:
			found = put(found, w)
		case 1:
			found = put(found, piece{w.off, w.data[:r.IntN(len(w.data)+1)]})
		}
	}
	return found
}

type reader []byte

func (b reader) ReadAt(p []byte, off int64) (int, error) {
	if off >= int64(len(b)) {
		return 0, io.EOF
	}
	n := copy(p, b[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}
