// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"bytes"
	"context"
	"fmt"
	"sync"
)

const (
	comparePiece   = 1 << 20
	compareWorkers = 4
	statusSpan     = 1 << 30 // the most that is asked about at once
)

// Difference says where two disks are not equal. It is an error.
type Difference struct {
	Off int64 // the first byte that differs, in bytes
	Len int64 // bytes that were compared and hold it
}

func (d *Difference) Error() string {
	return fmt.Sprintf("the images differ: the first difference is at byte %d", d.Off)
}

// Compare reads two disks and compares them, up to the first difference, which is a *Difference. What both say reads as zeroes is
// not read. progress is told how many bytes from the start are looked at, never at once.
func Compare(ctx context.Context, a, b *Reader, progress func(done int64)) error {
	if a.Size() != b.Size() {
		return fmt.Errorf("the images differ in size: %d and %d bytes", a.Size(), b.Size())
	}
	c := comparison{a: a, b: b, pieces: make(chan piece)}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var workers sync.WaitGroup
	for range compareWorkers {
		workers.Go(func() {
			buffers := [2][]byte{make([]byte, comparePiece), make([]byte, comparePiece)}
			for p := range c.pieces {
				if err := c.compare(ctx, p, buffers); err != nil {
					c.fail(err)
					cancel(err)
				}
			}
		})
	}
	err := c.cut(ctx, progress)
	close(c.pieces)
	workers.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mu.first != nil {
		return c.mu.first
	}
	if c.mu.err != nil {
		return c.mu.err
	}
	return err
}

// piece is a range to be compared; a side that reads as zeroes there is not read.
type piece struct {
	off, len     int64
	aData, bData bool
}

type comparison struct {
	a, b   *Reader
	pieces chan piece

	mu struct {
		sync.Mutex
		first *Difference // the lowest that was found
		err   error       // the first other error
	}
}

func (c *comparison) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if d, ok := err.(*Difference); ok {
		if c.mu.first == nil || d.Off < c.mu.first.Off {
			c.mu.first = d
		}
	} else if c.mu.err == nil {
		c.mu.err = err
	}
}

// cut hands out the pieces that have to be read.
func (c *comparison) cut(ctx context.Context, progress func(int64)) error {
	size := c.a.Size()
	for off := int64(0); off < size; {
		progress(off)
		aData, n, err := c.a.data(ctx, off, min(size-off, statusSpan))
		if err != nil {
			return err
		}
		bData, n, err := c.b.data(ctx, off, n)
		if err != nil {
			return err
		}
		if !aData && !bData {
			off += n
			continue
		}
		n = min(n, comparePiece)
		select {
		case c.pieces <- piece{off, n, aData, bData}:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		off += n
	}
	progress(size)
	return nil
}

func (c *comparison) compare(ctx context.Context, p piece, buffers [2][]byte) error {
	for i, side := range []struct {
		r    *Reader
		data bool
	}{{c.a, p.aData}, {c.b, p.bData}} {
		buffers[i] = buffers[i][:p.len]
		if !side.data {
			clear(buffers[i])
		} else if err := side.r.ReadAt(ctx, buffers[i], p.off); err != nil {
			return fmt.Errorf("reading %d bytes at %d: %w", p.len, p.off, err)
		}
	}
	if bytes.Equal(buffers[0], buffers[1]) {
		return nil
	}
	at := 0
	for buffers[0][at] == buffers[1][at] {
		at++
	}
	return &Difference{p.off + int64(at), p.len}
}

// Zero tells whether the disk is known to read as zeroes from end to end.
func (r *Reader) Zero(ctx context.Context) (bool, error) {
	for off := int64(0); off < r.Size(); {
		data, n, err := r.data(ctx, off, min(r.Size()-off, statusSpan))
		if err != nil || data {
			return false, err
		}
		off += n
	}
	return true, nil
}
