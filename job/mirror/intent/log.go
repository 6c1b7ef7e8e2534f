// SPDX-License-Identifier: Apache-2.0

package intent

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"sync"

	"github.com/blkmirror/blkmirror/block/bitmap"
)

// File is what a log is kept in.
type File interface {
	io.WriterAt
	io.Closer
	Truncate(size int64) error
	Sync() error
}

// Config describes a log.
type Config struct {
	Size           int64 // of the disks, bytes
	Granularity    int64 // of the mirror, bytes, a power of two: no region is smaller
	Region         int64 // the least size of a region, bytes, a power of two; 0 for a choice
	Durability     Durability
	Boot           [16]byte
	Source, Target Identity
	// Unflushed keeps regions that were written since the last good flushes of both disks, see Flushed. Host implies it.
	Unflushed bool
	// Hot is how many regions stay marked that need not, 0 for a choice.
	Hot int
}

// Log is an intent file that is being kept. Its methods may be called at once.
type Log struct {
	name   string
	config Config
	shift  uint8

	// io is held while the file is written: the order in which records get there must be that of what they say.
	io struct {
		sync.Mutex
		file   File
		header header
		batch  []snapshot
		equal  []uint64 // of the pass: regions that were found equal, as they are in the file
		buffer [sector]byte
	}

	mu struct {
		sync.Mutex
		phase    Phase
		wanted   []uint64 // what is to be in the file
		recorded []uint64 // the part of wanted that is: a guest may go on
		stale    []bool   // records that are not in the file as they are wanted
		anyStale bool
		hot      hot
		kept     bool // the mirror is to come back
		trouble  error
	}
}

// snapshot is what was written of a record.
type snapshot struct {
	number int64
	words  [recordWords]uint64
}

// shiftFor is the binary logarithm of the size of regions.
func shiftFor(c Config) uint8 {
	if c.Region == 0 {
		c.Region = minRegion
	}
	shift := uint8(bits.TrailingZeros64(uint64(max(c.Granularity, c.Region))))
	for regionsOf(c.Size, shift) > maxRegions {
		shift++
	}
	return shift
}

// Create fills an empty file, of the name that errors call it, and makes it durable; its directory entry is up to the caller. What is set in dirty is marked; nil is
// everything.
func Create(name string, f File, c Config, phase Phase, dirty *bitmap.Bitmap) (*Log, error) {
	if c.Durability == Host {
		c.Unflushed = true
	}
	l := &Log{name: name, config: c, shift: shiftFor(c)}
	n := l.regions()
	l.io.file = f
	l.io.header = header{version: version, durability: c.Durability, phase: phase, shift: l.shift, size: c.Size, boot: c.Boot, source: c.Source,
		target: c.Target}
	_, _ = rand.Read(l.io.header.id[:]) // never fails
	words := recordsFor(n) * recordWords
	l.mu.phase = phase
	l.mu.wanted, l.mu.recorded = make([]uint64, words), make([]uint64, words)
	l.mu.stale = make([]bool, recordsFor(n))
	l.mu.hot.init(n, l.hotLimit(), c.Unflushed)
	if dirty == nil || phase == Scanning {
		l.markAllLocked()
	} else {
		eachRun(dirty, func(off, n int64) {
			first, end := l.touched(off, n)
			for r := first; r < end; r++ {
				l.mu.wanted[r>>6] |= 1 << (r & 63)
			}
		})
	}
	if err := l.rewrite(true); err != nil {
		return nil, err
	}
	return l, nil
}

func eachRun(b *bitmap.Bitmap, f func(off, n int64)) {
	end := b.All().End
	for at := b.NextSetBefore(0, end); at < end; {
		run := b.RunEnd(at, end)
		f(b.Bytes(bitmap.Chunks{First: at, End: run}))
		at = b.NextSetBefore(run, end)
	}
}

// hotLimit is the bound of the hot set: 4 GiB, in not too few regions. A guest whose writes stay within that pays next to nothing.
func (l *Log) hotLimit() int {
	if l.config.Hot > 0 {
		return l.config.Hot
	}
	return int(max(4<<30>>l.shift, 64))
}

func (l *Log) regions() int64 { return regionsOf(l.config.Size, l.shift) }

// Region is the size of regions, in bytes.
func (l *Log) Region() int64 { return 1 << l.shift }

// Durability is that of the log.
func (l *Log) Durability() Durability { return l.config.Durability }

// touched are the regions that n bytes at off touch.
func (l *Log) touched(off, n int64) (first, end int64) {
	if n <= 0 {
		return 0, 0
	}
	return off >> l.shift, (off+n-1)>>l.shift + 1
}

func (l *Log) markAllLocked() {
	for i := range l.mu.wanted {
		l.mu.wanted[i], l.mu.recorded[i] = ^uint64(0), ^uint64(0)
	}
}

func (l *Log) recordedLocked(first, end int64) bool {
	for r := first; r < end; r++ {
		if l.mu.recorded[r>>6]>>(r&63)&1 == 0 {
			return false
		}
	}
	return true
}

// Mark records that a range may differ from now on. It does no I/O if that is recorded already. If the record cannot be written,
// the whole file is made to say that everything may differ, and [Log.Trouble] has the cause; if not even that is possible Mark
// fails, and the range must not be written.
func (l *Log) Mark(off, n int64) error {
	first, end := l.touched(off, n)
	l.mu.Lock()
	done := l.wantLocked(first, end)
	l.mu.Unlock()
	if done {
		return nil
	}
	l.io.Lock()
	defer l.io.Unlock()
	l.mu.Lock()
	done = l.recordedLocked(first, end) // by somebody who wrote more than his own
	l.mu.Unlock()
	if done {
		return nil
	}
	if err := l.writeStale(); err != nil {
		return l.invalidate(err)
	}
	return nil
}

// wantLocked wants regions, and says whether they are recorded.
func (l *Log) wantLocked(first, end int64) (recorded bool) {
	recorded = true
	for r := first; r < end; r++ {
		word, bit := r>>6, uint64(1)<<(r&63)
		if l.mu.recorded[word]&bit != 0 {
			continue
		}
		recorded = false
		if l.mu.wanted[word]&bit == 0 {
			l.mu.wanted[word] |= bit
			l.staleLocked(r / perRecord)
		}
	}
	return recorded
}

func (l *Log) staleLocked(record int64) { l.mu.stale[record], l.mu.anyStale = true, true }

// writeStale writes the records that are not in the file as they are wanted. The caller holds io. After an error it may not be
// known what those records are.
func (l *Log) writeStale() error {
	sync := false
	l.io.batch = l.io.batch[:0]
	l.mu.Lock()
	if l.mu.anyStale {
		for i, stale := range l.mu.stale {
			if !stale {
				continue
			}
			s := snapshot{number: int64(i)}
			at := int64(i) * recordWords
			copy(s.words[:], l.mu.wanted[at:])
			for w, word := range s.words {
				sync = sync || word&^l.mu.recorded[at+int64(w)] != 0
			}
			l.mu.stale[i] = false
			l.io.batch = append(l.io.batch, s)
		}
		l.mu.anyStale = false
	}
	l.mu.Unlock()
	err := l.writeBatch(sync && l.config.Durability == Host)
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range l.io.batch {
		s := &l.io.batch[i]
		if err != nil {
			l.staleLocked(s.number)
			continue
		}
		for w, word := range s.words {
			at := s.number*recordWords + int64(w)
			l.mu.recorded[at] |= word & l.mu.wanted[at] // what was retired meanwhile is in nobody's use
		}
	}
	return err
}

func (l *Log) writeBatch(sync bool) error {
	h := &l.io.header
	for i := range l.io.batch {
		s := &l.io.batch[i]
		h.sequence++
		encodeRecord(&l.io.buffer, h.id, s.number, h.sequence, s.words[:])
		if err := l.write(recordAt(s.number)); err != nil {
			return err
		}
	}
	if !sync {
		return nil
	}
	return l.sync()
}

// write writes the buffer.
func (l *Log) write(off int64) error {
	if _, err := l.io.file.WriteAt(l.io.buffer[:], off); err != nil {
		return fmt.Errorf("intent file '%s': cannot write 512 bytes at offset %d: %w", l.name, off, bare(err))
	}
	return nil
}

func (l *Log) sync() error {
	if err := l.io.file.Sync(); err != nil {
		return fmt.Errorf("intent file '%s': cannot make it durable: %w", l.name, bare(err))
	}
	return nil
}

// writeHeader writes the header with a phase, and makes it durable if that is asked for or the durability is Host.
func (l *Log) writeHeader(phase Phase, sync bool) error {
	h := l.io.header
	h.sequence++
	h.phase = phase
	h.encode(&l.io.buffer)
	if err := l.write(0); err != nil {
		return err
	}
	if sync || l.config.Durability == Host {
		if err := l.sync(); err != nil {
			return err
		}
	}
	l.io.header = h
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mu.phase = phase
	if phase >= Pivoted {
		l.markAllLocked() // nobody has to wait any more
	}
	return nil
}

// rewrite writes all of the file, the header last.
func (l *Log) rewrite(sync bool) error {
	phase := l.io.header.phase
	l.mu.Lock()
	for i := range l.mu.stale {
		l.staleLocked(int64(i))
	}
	l.mu.Unlock()
	if err := l.writeStale(); err != nil {
		return err
	}
	if sync {
		if err := l.sync(); err != nil {
			return err
		}
	}
	return l.writeHeader(phase, sync)
}

// invalidate makes the file say that everything may differ. The error is why it does not.
func (l *Log) invalidate(cause error) error {
	if err := l.writeHeader(Scanning, false); err != nil {
		if cut := l.cut(); cut != nil {
			return errors.Join(cause, err, cut)
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.io.header.phase, l.mu.phase = Scanning, Scanning
	l.markAllLocked()
	l.mu.trouble = cause
	return nil
}

// cut empties the file, which says the same as phase Scanning and takes no space.
func (l *Log) cut() error {
	if err := l.io.file.Truncate(0); err != nil {
		return fmt.Errorf("intent file '%s': cannot cut it off: %w", l.name, bare(err))
	}
	if l.config.Durability == Host {
		return l.sync()
	}
	return nil
}

// Trouble is why the file was last made to say that everything may differ, once; nil if it was not since.
func (l *Log) Trouble() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	err := l.mu.trouble
	l.mu.trouble = nil
	return err
}

// Phase is the phase that the file has.
func (l *Log) Phase() Phase {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.mu.phase
}

// SetPhase records a phase that follows Copying. A file that says that everything may differ stays so, unless the mirror ends.
func (l *Log) SetPhase(phase Phase) error {
	l.io.Lock()
	defer l.io.Unlock()
	if now := l.io.header.phase; now == phase || now == Scanning && phase < Pivoted || now >= Pivoted {
		return nil
	}
	return l.writeHeader(phase, phase >= Pivoted)
}

// Keep has the mirror come back although it ends: End does nothing from now on.
func (l *Log) Keep() {
	l.mu.Lock()
	l.mu.kept = true
	l.mu.Unlock()
}

// End records that the mirror ended and does not come back; it comes before the first write that is not marked.
func (l *Log) End() error {
	if l.Kept() {
		return nil
	}
	l.io.Lock()
	defer l.io.Unlock()
	if l.io.header.phase >= Pivoted {
		return nil
	}
	return l.writeHeader(Ended, true)
}

// Kept says whether Keep was called.
func (l *Log) Kept() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.mu.kept
}

// Invalidate makes the file say that everything may differ.
func (l *Log) Invalidate(cause error) error {
	l.io.Lock()
	defer l.io.Unlock()
	return l.invalidate(cause)
}

// Rest records, durably, who the disks are after an orderly stop, when nobody writes to them any more.
func (l *Log) Rest(source, target Identity) error {
	l.io.Lock()
	defer l.io.Unlock()
	l.io.header.source, l.io.header.target, l.io.header.orderly = source, target, true
	return l.writeHeader(l.io.header.phase, true)
}

// Close closes the file.
func (l *Log) Close() error {
	l.io.Lock()
	defer l.io.Unlock()
	return l.io.file.Close()
}
