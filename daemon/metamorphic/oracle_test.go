// SPDX-License-Identifier: Apache-2.0

package metamorphic

import "fmt"

// oracle is the disk as it must be: bytes, and which of them were trimmed and neither written nor read since. Those may read
// as they are here, or as zero.
type oracle struct {
	bytes [diskSize]byte
	open  [diskSize]bool
}

// apply carries out a step that changes the disk.
func (o *oracle) apply(s step) {
	switch s.verb {
	case write:
		filled(o.bytes[s.off:s.end], s.fill)
		clear(o.open[s.off:s.end])
	case zero:
		clear(o.bytes[s.off:s.end])
		clear(o.open[s.off:s.end])
	case trim:
		for i := s.off; i < s.end; i++ {
			o.open[i] = true
		}
	}
}

// check compares what was read at an offset. What was open is settled by it.
func (o *oracle) check(p []byte, off int64) error {
	for i, got := range p {
		at := off + int64(i)
		want := o.bytes[at]
		switch {
		case got == want:
		case o.open[at] && got == 0:
			o.bytes[at] = 0
		default:
			or := ""
			if o.open[at] {
				or = " or zero, for it was trimmed"
			}
			return fmt.Errorf("at %d (%d of %d bytes from %d) there is %#x in place of %#x%s", at, i, len(p), off, got, want, or)
		}
		o.open[at] = false
	}
	return nil
}
