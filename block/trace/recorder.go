// SPDX-License-Identifier: Apache-2.0

package trace

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"
)

const (
	// bufferSize is how many bytes of records may wait for the file.
	bufferSize = 1 << 20
	// writeEvery is how long a record waits for others at most.
	writeEvery = 500 * time.Millisecond
	// DefaultLimit is how large a file becomes unless Options say otherwise.
	DefaultLimit = 1 << 30
	leastLimit   = 64 << 10
)

// Options say what is recorded.
type Options struct {
	Nodes, Exports []string // names; if both are empty, everything
	Limit          int64    // of the file in bytes, 0 for DefaultLimit; what comes then is dropped
}

// Recorder writes a trace. Its methods may be called at any time.
type Recorder struct {
	o     Options
	began time.Time
	file  *os.File
	full  chan struct{} // has room for one: the buffer is half full
	stop  chan struct{}
	done  chan struct{}

	mu struct {
		sync.Mutex
		buffer  []byte
		numbers map[subject]uint32
		left    int64 // bytes that the file may grow by
		totals  Totals
		lost    int64 // dropped, and not yet told in the file
		ended   bool
	}
	spare []byte // belongs to the goroutine that writes
	err   error  // why the file has not everything; likewise, until done is closed
}

type subject struct {
	where Where
	name  string
}

// Start begins a trace in a new file. A file that is there is left alone, and an error.
func Start(path string, o Options) (*Recorder, error) {
	if o.Limit == 0 {
		o.Limit = DefaultLimit
	}
	if o.Limit < leastLimit {
		return nil, fmt.Errorf("the limit of a trace is %d bytes at least", leastLimit)
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	r := &Recorder{o: o, began: time.Now(), file: f, full: make(chan struct{}, 1), stop: make(chan struct{}), done: make(chan struct{}),
		spare: make([]byte, 0, bufferSize)}
	r.mu.buffer, r.mu.numbers = make([]byte, 0, bufferSize), map[subject]uint32{}
	r.mu.left = o.Limit - headerSize - 2*recordSize // for what is told at the end
	if _, err := f.Write(header(r.began)); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	go r.write()
	return r, nil
}

// Wants says whether requests of a node or an export are recorded.
func (r *Recorder) Wants(w Where, name string) bool {
	switch {
	case len(r.o.Nodes)+len(r.o.Exports) == 0:
		return true
	case w == Node:
		return slices.Contains(r.o.Nodes, name)
	}
	return slices.Contains(r.o.Exports, name)
}

// Record notes a request that has just ended, if it is wanted. When it began is worked out from how long it took.
func (r *Recorder) Record(q Request) {
	if !r.Wants(q.Where, q.Name) {
		return
	}
	q.Began = max(time.Since(r.began)-q.Took, 0)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.mu.ended {
		return
	}
	s := subject{q.Where, q.Name}
	number, known := r.mu.numbers[s]
	size := recordSize
	if !known {
		if len(s.name) > maxName {
			s.name = s.name[:maxName]
		}
		size += recordSize + len(s.name) + padding(len(s.name))
	}
	if r.mu.lost > 0 {
		size += recordSize
	}
	if len(r.mu.buffer)+size > bufferSize || r.mu.left < int64(size) || !known && len(r.mu.numbers) >= maxNames {
		r.mu.totals.Dropped++
		r.mu.lost++
		return
	}
	r.mu.left -= int64(size)
	r.tellLostLocked()
	if !known {
		number = uint32(len(r.mu.numbers) + 1)
		r.mu.numbers[subject{q.Where, q.Name}] = number
		r.mu.buffer = appendName(r.mu.buffer, s.where, number, s.name)
	}
	r.mu.buffer = appendRequest(r.mu.buffer, &q, number)
	r.mu.totals.Recorded++
	if len(r.mu.buffer) > bufferSize/2 {
		select {
		case r.full <- struct{}{}:
		default:
		}
	}
}

func (r *Recorder) tellLostLocked() {
	if r.mu.lost > 0 {
		r.mu.buffer = appendRecord(r.mu.buffer, kindLost, 0, 0, 0, [5]uint64{uint64(time.Since(r.began)), uint64(r.mu.lost)})
		r.mu.lost = 0
	}
}

// Totals are those so far.
func (r *Recorder) Totals() Totals {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.mu.totals
}

// Stop ends the trace, when all that was recorded is in the file. It is called once.
func (r *Recorder) Stop() (Totals, error) {
	r.mu.Lock()
	r.mu.ended = true
	r.mu.Unlock()
	close(r.stop)
	<-r.done
	return r.Totals(), errors.Join(r.err, r.file.Close())
}

// write is the life of the goroutine that writes.
func (r *Recorder) write() {
	defer close(r.done)
	ticks := time.NewTicker(writeEvery)
	defer ticks.Stop()
	for {
		select {
		case <-r.full:
			r.flush()
		case <-ticks.C:
			r.flush()
		case <-r.stop:
			r.flush()
			r.mu.Lock()
			r.tellLostLocked()
			r.mu.buffer = appendRecord(r.mu.buffer, kindEnd, 0, 0, 0, [5]uint64{uint64(time.Since(r.began)),
				uint64(r.mu.totals.Recorded), uint64(r.mu.totals.Dropped)})
			r.mu.Unlock()
			r.flush()
			return
		}
	}
}

// flush writes what there is. After a failure the file is left as it is, and everything counts as dropped.
func (r *Recorder) flush() {
	r.mu.Lock()
	text := r.mu.buffer
	r.mu.buffer = r.spare[:0]
	r.mu.Unlock()
	r.spare = text
	if len(text) == 0 || r.err != nil {
		return
	}
	if _, err := r.file.Write(text); err != nil {
		r.err = fmt.Errorf("the trace ends early: %w", err)
		r.mu.Lock()
		r.mu.left = 0
		r.mu.Unlock()
	}
}
