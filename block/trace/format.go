// SPDX-License-Identifier: Apache-2.0

package trace

import (
	"encoding/binary"
	"fmt"
	"time"
)

const (
	magic      = "BLKMTRC1"
	headerSize = 32
	recordSize = 48
	maxName    = 255
)

// The kinds of records.
const (
	kindName    = 1 // gives a number to a name; the name follows in as many records as it takes
	kindRequest = 2
	kindLost    = 3 // requests that there was no room for
	kindEnd     = 4 // the trace was ended in good order
)

// Op is what a request does.
type Op uint8

// The operations.
const (
	Read Op = iota + 1
	Write
	Zero
	Discard
	Flush
	Status
	Cache
)

var opNames = [...]string{"?", "read", "write", "zero", "discard", "flush", "status", "cache"}

func (o Op) String() string {
	if int(o) < len(opNames) {
		return opNames[o]
	}
	return opNames[0]
}

// Where says what a name is of.
type Where uint8

// What requests are traced of.
const (
	Node   Where = 1
	Export Where = 2
)

func (w Where) String() string {
	switch w {
	case Node:
		return "node"
	case Export:
		return "export"
	}
	return "?"
}

// Request is one request, when it has ended.
type Request struct {
	Began  time.Duration // after the trace began
	Took   time.Duration
	Where  Where
	Name   string // of the node or the export
	Conn   uint32 // number of the connection, with exports
	Op     Op
	Failed bool
	Off    int64 // bytes
	Len    int64 // bytes
}

// Totals are what a trace came to.
type Totals struct {
	Recorded, Dropped int64
}

func header(began time.Time) []byte {
	p := append(make([]byte, 0, headerSize), magic...)
	p = binary.LittleEndian.AppendUint32(p, recordSize)
	p = binary.LittleEndian.AppendUint32(p, 0)
	p = binary.LittleEndian.AppendUint64(p, uint64(began.UnixNano()))
	return append(p, make([]byte, headerSize-len(p))...)
}

// appendRecord appends a record: kind, two bytes and a number of 32 bits that depend on it, and five numbers of 64 bits.
func appendRecord(p []byte, kind, a, b byte, number uint32, fields [5]uint64) []byte {
	p = append(p, kind, a, b, 0)
	p = binary.LittleEndian.AppendUint32(p, number)
	for _, f := range fields {
		p = binary.LittleEndian.AppendUint64(p, f)
	}
	return p
}

func appendName(p []byte, w Where, number uint32, name string) []byte {
	p = appendRecord(p, kindName, byte(w), byte(len(name)), number, [5]uint64{})
	p = append(p, name...)
	return append(p, make([]byte, padding(len(name)))...)
}

// padding is how much a name lacks to whole records.
func padding(n int) int { return (recordSize - n%recordSize) % recordSize }

func appendRequest(p []byte, r *Request, number uint32) []byte {
	failed := byte(0)
	if r.Failed {
		failed = 1
	}
	return appendRecord(p, kindRequest, byte(r.Op), failed, number,
		[5]uint64{uint64(r.Began), uint64(r.Took), uint64(r.Off), uint64(r.Len), uint64(r.Conn)})
}

func damaged(at int64, format string, args ...any) error {
	return fmt.Errorf("the trace is damaged at byte %d: %s", at, fmt.Sprintf(format, args...))
}
