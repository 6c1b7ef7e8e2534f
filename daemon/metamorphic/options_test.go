// SPDX-License-Identifier: Apache-2.0

package metamorphic

import (
	"fmt"
	"math/rand/v2"
	"strings"
)

// disk is how an image is opened.
type disk struct {
	stack  string // file, raw, window or throttle
	direct bool
	unmap  bool // discard=unmap, else ignore
	detect string
}

// set is one set of options; none of them may make a difference to what a guest sees.
type set struct {
	source, target disk
	granularity    int64
	bufSize        int64
	mode           string
	speed          int64
	simple         bool // replies
	used           bool // the target has data of its own at first
}

func (d disk) String() string {
	var b strings.Builder
	b.WriteString(d.stack)
	if d.direct {
		b.WriteString(",direct")
	}
	if d.unmap {
		b.WriteString(",discard=unmap")
	}
	return b.String() + ",detect-zeroes=" + d.detect
}

func (s set) String() string {
	text := fmt.Sprintf("source=%v target=%v granularity=%d buf-size=%d copy-mode=%s speed=%d",
		s.source, s.target, s.granularity, s.bufSize, s.mode, s.speed)
	if s.simple {
		text += " simple"
	}
	if s.used {
		text += " used"
	}
	return text
}

// newSet makes up the i-th set. The first ones see to it that every value comes up soon.
func newSet(seed uint64, i int) set {
	r := rand.New(rand.NewPCG(seed, uint64(i)+1))
	stacks, detects := []string{"file", "raw", "window", "throttle"}, []string{"off", "on", "unmap"}
	d := func(turn int) disk {
		d := disk{stack: stacks[turn%len(stacks)], direct: r.IntN(4) == 0, unmap: r.IntN(2) == 0, detect: detects[r.IntN(3)]}
		d.unmap = d.unmap || d.detect == "unmap" // it is refused otherwise
		return d
	}
	return set{
		source:      d(i / 4),
		target:      d(i),
		granularity: []int64{512, 4 << 10, 64 << 10, 1 << 20, 64 << 20}[i%5],
		bufSize:     []int64{0, 64 << 10, 1 << 20}[i%3],
		mode:        []string{"background", "write-blocking", "auto", "background"}[r.IntN(4)],
		speed:       []int64{0, 32 << 20}[r.IntN(2)],
		simple:      r.IntN(3) == 0,
		used:        r.IntN(3) == 0,
	}
}
