// SPDX-License-Identifier: Apache-2.0

package nbd

import (
	"io"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/blkmirror/blkmirror/block"
)

const (
	// inputSize is how much is read at once.
	inputSize = 128 << 10
	// directRead is how much data of a read is worth a system call of its own, straight into the caller's buffer.
	directRead = 16 << 10
)

// input reads what the server sends, in bulk. Only the reader uses it; the lock is held while bytes go into a caller's
// buffer, and never while there is nothing to read.
type input struct {
	sync.Mutex
	conn *conn
	pool *block.Buffer
	r, w int // pool.B[r:w] was read and is not used yet

	// What tryRead works on.
	target  *request
	at, end int64 // the part of target.into that is missing
	err     error
	try     func(fd uintptr) bool // the method value, made once
}

func (in *input) init(c *conn) {
	in.conn, in.pool, in.try = c, block.GetBuffer(inputSize), in.tryRead
}

// release gives the memory back; nothing is read any more.
func (in *input) release() { in.pool.Release() }

// next is the next n bytes, n being at most inputSize, valid until more is read. The error is io.EOF only if there is
// nothing at all.
func (in *input) next(n int) ([]byte, error) {
	if err := in.fill(n); err != nil {
		return nil, err
	}
	b := in.pool.B[in.r : in.r+n]
	in.r += n
	return b, nil
}

// fill reads until n bytes are buffered.
func (in *input) fill(n int) error {
	if in.r == in.w {
		in.r, in.w = 0, 0
	} else if in.r+n > len(in.pool.B) {
		in.w = copy(in.pool.B, in.pool.B[in.r:in.w])
		in.r = 0
	}
	for in.w-in.r < n {
		got, err := in.conn.nc.Read(in.pool.B[in.w:])
		in.w += got
		if err != nil && in.w-in.r < n {
			if err == io.EOF && in.w > in.r {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
	}
	return nil
}

// discard reads n bytes that nobody wants.
func (in *input) discard(n int64) error {
	for n > 0 {
		if err := noEOF(in.fill(1)); err != nil {
			return err
		}
		step := min(n, int64(in.w-in.r))
		in.r += int(step)
		n -= step
	}
	return nil
}

// receive reads n bytes of data for r, to go into its buffer from byte at on. Once the caller has gone, they go nowhere.
func (in *input) receive(r *request, at, n int64) error {
	for n > 0 {
		if in.r == in.w && n >= directRead && in.conn.raw != nil {
			return in.direct(r, at, n)
		}
		if err := noEOF(in.fill(1)); err != nil {
			return err
		}
		step := min(n, int64(in.w-in.r))
		in.Lock()
		if !r.detached {
			copy(r.into[at:at+step], in.pool.B[in.r:in.r+int(step)])
		}
		in.Unlock()
		in.r += int(step)
		at, n = at+step, n-step
	}
	return nil
}

// direct reads straight into the buffer of r.
func (in *input) direct(r *request, at, n int64) error {
	in.target, in.at, in.end, in.err = r, at, at+n, nil
	err := in.conn.raw.Read(in.try)
	in.target = nil
	if err == nil {
		err = in.err
	}
	if err == nil && in.at < in.end { // the caller has gone
		return in.discard(in.end - in.at)
	}
	return err
}

// tryRead reads what is there. It returns false if more has to be waited for.
func (in *input) tryRead(fd uintptr) bool {
	in.Lock()
	defer in.Unlock()
	for in.at < in.end && !in.target.detached {
		n, err := unix.Read(int(fd), in.target.into[in.at:in.end])
		switch {
		case err == unix.EINTR:
		case err == unix.EAGAIN:
			return false
		case err != nil:
			in.err = err
			return true
		case n == 0:
			in.err = io.ErrUnexpectedEOF
			return true
		default:
			in.at += int64(n)
		}
	}
	return true
}

// zero fills a part of the buffer of r with zeroes.
func (in *input) zero(r *request, at, n int64) {
	in.Lock()
	defer in.Unlock()
	if !r.detached {
		clear(r.into[at : at+n])
	}
}

// noEOF is for the middle of something.
func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
