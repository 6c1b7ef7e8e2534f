// SPDX-License-Identifier: Apache-2.0

package trace

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
	"time"
)

// maxNames bounds the memory for names; requests of further ones are not recorded.
const maxNames = 1 << 16

// Reader reads a trace.
type Reader struct {
	in    *bufio.Reader
	at    int64
	began time.Time
	names map[uint32]subject

	// Dropped is how many requests are missing so far.
	Dropped int64
	// End is what the recorder said at the end; nil before, and of a trace that was cut off.
	End *Totals
}

// NewReader reads the header of a trace.
func NewReader(from io.Reader) (*Reader, error) {
	r := &Reader{in: bufio.NewReaderSize(from, 1<<16), names: map[uint32]subject{}}
	var h [headerSize]byte
	if _, err := io.ReadFull(r.in, h[:]); err != nil || string(h[:len(magic)]) != magic {
		if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			return nil, err
		}
		return nil, errors.New("this is no trace")
	}
	if size := binary.LittleEndian.Uint32(h[8:]); size != recordSize {
		return nil, damaged(8, "records of %d bytes", size)
	}
	r.began = time.Unix(0, int64(binary.LittleEndian.Uint64(h[16:])))
	r.at = headerSize
	return r, nil
}

// Began is when the trace was begun.
func (r *Reader) Began() time.Time { return r.began }

// Next returns the next request, in the order in which they ended, and io.EOF after the last one. A trace that was cut off, such as by
// the death of the daemon, just ends: End is nil then.
func (r *Reader) Next() (Request, error) {
	var p [recordSize]byte
	for {
		if _, err := io.ReadFull(r.in, p[:]); errors.Is(err, io.ErrUnexpectedEOF) {
			return Request{}, io.EOF
		} else if err != nil {
			return Request{}, err
		}
		at := r.at
		r.at += recordSize
		if r.End != nil {
			return Request{}, damaged(at, "something comes after the end")
		}
		number := binary.LittleEndian.Uint32(p[4:])
		field := func(i int) uint64 { return binary.LittleEndian.Uint64(p[8+8*i:]) }
		signed := func(i int) int64 { return int64(field(i)) }
		switch p[0] {
		case kindName:
			switch err := r.name(Where(p[1]), int(p[2]), number, at); {
			case errors.Is(err, io.ErrUnexpectedEOF):
				return Request{}, io.EOF
			case err != nil:
				return Request{}, err
			}
		case kindRequest:
			s, known := r.names[number]
			q := Request{Began: time.Duration(signed(0)), Took: time.Duration(signed(1)), Where: s.where, Name: s.name,
				Op: Op(p[1]), Failed: p[2] != 0, Off: signed(2), Len: signed(3), Conn: uint32(field(4))}
			switch {
			case !known:
				return q, damaged(at, "a request of something without a name")
			case q.Op == 0 || int(q.Op) >= len(opNames) || q.Began < 0 || q.Took < 0 || q.Off < 0 || q.Len < 0:
				return q, damaged(at, "a request that cannot be")
			}
			return q, nil
		case kindLost:
			if n := signed(1); n > 0 && r.Dropped+n > 0 {
				r.Dropped += n
				continue
			}
			return Request{}, damaged(at, "a count that cannot be")
		case kindEnd:
			if signed(1) < 0 || signed(2) < 0 {
				return Request{}, damaged(at, "a count that cannot be")
			}
			r.End = &Totals{signed(1), signed(2)}
			r.Dropped = r.End.Dropped
		default:
			return Request{}, damaged(at, "a record of kind %d", p[0])
		}
	}
}

func (r *Reader) name(w Where, n int, number uint32, at int64) error {
	if w != Node && w != Export || n == 0 || len(r.names) >= maxNames {
		return damaged(at, "a name that cannot be")
	}
	p := make([]byte, n+padding(n))
	if _, err := io.ReadFull(r.in, p); errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	} else if err != nil {
		return err
	}
	r.at += int64(len(p))
	if _, known := r.names[number]; known {
		return damaged(at, "a second name for number %d", number)
	}
	r.names[number] = subject{w, string(p[:n])}
	return nil
}
