// SPDX-License-Identifier: Apache-2.0

package nbdserver

import (
	"io"

	"github.com/blkmirror/blkmirror/block"
)

const (
	// inputSize is how much is read at once.
	inputSize = 128 << 10
	// bigPayload is data that is better read to where it belongs than copied there; behind it no more than nextHeads is
	// read at once, because the next request is likely to be of the same sort.
	bigPayload = 64 << 10
	nextHeads  = 4 << 10
)

// input reads from a connection in bulk. It is used by one goroutine at a time.
type input struct {
	from  io.Reader
	pool  *block.Buffer
	r, w  int // pool.B[r:w] was read and is not used yet
	ahead int // how much to read at once
}

func newInput(from io.Reader) *input {
	return &input{from: from, pool: block.GetBuffer(inputSize), ahead: inputSize}
}

// release gives the memory back; nothing can be read any more.
func (in *input) release() { in.pool.Release() }

// buffered is what was read and is not used yet.
func (in *input) buffered() []byte { return in.pool.B[in.r:in.w] }

// skip uses n buffered bytes.
func (in *input) skip(n int) { in.r += n }

// fill reads until n bytes are buffered, n being at most inputSize. The error is io.EOF only if nothing is buffered.
func (in *input) fill(n int) error {
	if in.r == in.w {
		in.r, in.w = 0, 0
	} else if in.r+n > len(in.pool.B) || in.w-in.r < n && in.w > len(in.pool.B)/2 {
		in.w = copy(in.pool.B, in.buffered())
		in.r = 0
	}
	for in.w-in.r < n {
		got, err := in.from.Read(in.pool.B[in.w:min(len(in.pool.B), max(in.r+n, in.w+in.ahead))])
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

// next is the next n bytes, n being at most inputSize, valid until more is read.
func (in *input) next(n int) ([]byte, error) {
	if err := in.fill(n); err != nil {
		return nil, err
	}
	b := in.buffered()[:n]
	in.r += n
	return b, nil
}

// take fills p: with what is buffered, the rest straight from the connection.
func (in *input) take(p []byte) error {
	in.ahead = inputSize
	if len(p) >= bigPayload {
		in.ahead = nextHeads
	}
	n := copy(p, in.buffered())
	in.r += n
	if n == len(p) {
		return nil
	}
	return noEOF(readFull(in.from, p[n:]))
}

// discard reads n bytes that nobody wants.
func (in *input) discard(n int64) error {
	for n > 0 {
		if in.r == in.w {
			if err := in.fill(1); err != nil {
				return noEOF(err)
			}
		}
		step := min(n, int64(in.w-in.r))
		in.r += int(step)
		n -= step
	}
	return nil
}

func readFull(from io.Reader, p []byte) error {
	_, err := io.ReadFull(from, p)
	return err
}

// noEOF is for reads in the middle of something.
func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
