// SPDX-License-Identifier: Apache-2.0

package metamorphic

import (
	"fmt"
	"math/rand/v2"
	"strings"
)

// diskSize is that of the guest's disk.
const diskSize = 16 << 20

// verb is what a step does.
type verb string

const (
	read  verb = "read"
	write verb = "write"
	zero  verb = "zero"
	trim  verb = "trim"
	flush verb = "flush"

	start    verb = "start"    // a mirror to the next target
	mode     verb = "mode"     // its copy mode becomes the other one
	pause    verb = "pause"    //
	resume   verb = "resume"   //
	cancel   verb = "cancel"   // by force
	stay     verb = "stay"     // a soft cancel: the mirror ends, and the guest keeps its disk
	complete verb = "complete" // waits until it is ready, and switches over
)

// step is one thing that the guest or the operator does.
type step struct {
	verb     verb
	off, end int64
	fua      bool
	mayUnmap bool
	fill     uint64 // what is written, see filled
}

func (s step) byOperator() bool {
	switch s.verb {
	case read, write, zero, trim, flush:
		return false
	}
	return true
}

func (s step) changes() bool { return s.verb == write || s.verb == zero || s.verb == trim }

// conflicts says whether the outcome depends on the order of two steps of the guest.
func (s step) conflicts(other step) bool {
	return s.off < other.end && other.off < s.end && (s.changes() || other.changes())
}

func (s step) String() string {
	if s.byOperator() || s.verb == flush {
		return string(s.verb)
	}
	text := fmt.Sprintf("%s %d+%d", s.verb, s.off, s.end-s.off)
	if s.fua {
		text += " fua"
	}
	if s.mayUnmap {
		text += " unmap"
	}
	if s.verb == write {
		text += fmt.Sprintf(" fill=%#x", s.fill)
	}
	return text
}

// history is a list of steps; depth is how many of the guest's may be under way at once.
type history []step

const depth = 8

func (h history) String() string {
	var b strings.Builder
	for _, s := range h {
		b.WriteString(s.String() + "\n")
	}
	return b.String()
}

// newHistory makes a history with n steps of the guest.
func newHistory(seed uint64, n int) history {
	r := rand.New(rand.NewPCG(seed, 0))
	h := history{{verb: write, end: 1 << 20, fill: r.Uint64() &^ 3}} // a disk with something on it
	guest := func(count int) {
		for range count {
			h = append(h, newStep(r))
		}
	}
	operator := func(verbs ...verb) {
		for _, v := range verbs {
			h = append(h, step{verb: v})
		}
	}
	operator(start)
	guest(n / 8)
	if r.IntN(2) == 0 { // the target is a used one afterwards
		guest(r.IntN(n / 8))
		operator([]verb{cancel, stay}[r.IntN(2)])
		guest(r.IntN(n / 16))
		operator(start)
	}
	for range 2 {
		operator(mode)
		guest(r.IntN(n / 8))
		operator(pause)
		guest(r.IntN(n / 8))
		operator(resume)
		guest(r.IntN(n / 16))
	}
	guest(n*3/4 - min(guestSteps(h), n*3/4))
	operator(complete)
	guest(n - min(guestSteps(h), n))
	return h
}

func guestSteps(h history) (count int) {
	for _, s := range h {
		if !s.byOperator() {
			count++
		}
	}
	return count
}

// newStep makes up something that a guest might do.
func newStep(r *rand.Rand) step {
	s := step{fill: r.Uint64(), fua: r.IntN(40) == 0} // syncs take their time
	switch p := r.IntN(100); {
	case p < 25:
		s.verb, s.fua = read, false
	case p < 65:
		s.verb = write
	case p < 83:
		s.verb, s.mayUnmap = zero, r.IntN(2) == 0
	case p < 97:
		s.verb = trim
	default:
		return step{verb: flush}
	}
	// Sizes and places as file systems have them, as chunks and clusters are, and as nobody has them.
	align, most := int64(4096), int64(16)
	switch r.IntN(8) {
	case 0:
		align, most = 1, 10000
	case 1, 2:
		align, most = 512, 64
	case 3:
		align, most = 64<<10, 16
	case 4:
		if r.IntN(3) == 0 {
			align, most = 1<<20, 3
		}
	}
	length := (1 + r.Int64N(most)) * align
	where := int64(diskSize)
	if r.IntN(2) == 0 {
		where = 4 << 20 // half of it happens in a quarter of the disk
	}
	s.off = r.Int64N((where-length)/align+1) * align
	s.end = s.off + length
	return s
}

// filled makes the bytes that a write writes: random ones, but for the whole or a part that may be zero.
func filled(p []byte, seed uint64) {
	for i := 0; i < len(p); i += 8 {
		x := (seed + uint64(i)) * 0x9e3779b97f4a7c15
		x ^= x >> 31
		x *= 0xbf58476d1ce4e5b9
		x ^= x >> 29
		for j := i; j < min(i+8, len(p)); j++ {
			p[j] = byte(x) | 1
			x >>= 8
		}
	}
	switch seed % 8 {
	case 1:
		clear(p)
	case 2:
		clear(p[len(p)/2:])
	case 3:
		clear(p[:len(p)/2])
	}
}
