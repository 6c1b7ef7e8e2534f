// SPDX-License-Identifier: Apache-2.0

package throttle

import (
	"fmt"

	"github.com/blkmirror/blkmirror/block"
)

// Limit is one rate, in bytes or operations a second. An Average of zero means no limit.
type Limit struct {
	Average   int64
	Max       int64 // rate of a burst; 0 for none
	MaxLength int64 // seconds that a burst may last; 0 for 1
}

// Limits are those of a group.
type Limits struct {
	BPSTotal, BPSRead, BPSWrite    Limit
	IOPSTotal, IOPSRead, IOPSWrite Limit
	IOPSSize                       int64 // bytes that count as one operation; 0 if every request is one
}

// most is the highest rate that can be set.
const most = 1_000_000_000_000_000

// Check says what is wrong with the limits.
func (l Limits) Check() error {
	for _, pair := range [...][3]Limit{{l.BPSTotal, l.BPSRead, l.BPSWrite}, {l.IOPSTotal, l.IOPSRead, l.IOPSWrite}} {
		total, read, write := pair[0], pair[1], pair[2]
		if total.Average != 0 && (read.Average != 0 || write.Average != 0) ||
			total.Max != 0 && (read.Max != 0 || write.Max != 0) {
			return invalid("bps/iops/max total values and read/write values cannot be used at the same time")
		}
	}
	if l.IOPSSize != 0 && l.IOPSTotal.Average == 0 && l.IOPSRead.Average == 0 && l.IOPSWrite.Average == 0 {
		return invalid("iops size requires an iops value to be set")
	}
	if l.IOPSSize < 0 || l.IOPSSize > most {
		return invalid("iops size must be within [0, %d]", int64(most))
	}
	for _, limit := range [...]Limit{l.BPSTotal, l.BPSRead, l.BPSWrite, l.IOPSTotal, l.IOPSRead, l.IOPSWrite} {
		if err := limit.check(); err != nil {
			return err
		}
	}
	return nil
}

func (l Limit) check() error {
	switch {
	case l.Average < 0 || l.Max < 0 || l.Average > most || l.Max > most:
		return invalid("bps/iops/max values must be within [0, %d]", int64(most))
	case l.MaxLength < 0:
		return invalid("the burst length cannot be %d", l.MaxLength)
	case l.MaxLength > 1 && l.Max == 0:
		return invalid("burst length set without burst rate")
	case l.MaxLength > 1 && l.Max > most/l.MaxLength:
		return invalid("burst length too high for this burst rate")
	case l.Max != 0 && l.Average == 0:
		return invalid("bps_max/iops_max require corresponding bps/iops values")
	case l.Max != 0 && l.Max < l.Average:
		return invalid("bps_max/iops_max cannot be lower than bps/iops")
	}
	return nil
}

func invalid(format string, args ...any) error {
	return &block.Error{Kind: block.KindInvalid, Op: block.OpGraph, Err: fmt.Errorf(format, args...)}
}
