// SPDX-License-Identifier: Apache-2.0

package qcow2

import "context"

// why tells what a cluster was freed for, which decides whether the file is told.
type why uint8

const (
	freedRequest why = iota // a guest discarded or zeroed it
	freedOther
)

// freeRange is a range of whole clusters in the file to which one reference each is gone.
type freeRange struct {
	off, n int64
	why    why
}

// freed is a list of ranges, next to each other in one where possible.
type freed struct {
	ranges []freeRange
	bytes  int64
}

func (f *freed) add(off, n int64, w why) {
	f.ranges = addRange(f.ranges, off, n, w)
	f.bytes += n
}

func addRange(list []freeRange, off, n int64, w why) []freeRange {
	if len(list) > 0 {
		last := &list[len(list)-1]
		if last.why == w && last.off+last.n == off {
			last.n += n
			return list
		}
	}
	return append(list, freeRange{off, n, w})
}

// A request that frees more than this without a flush in between makes it durable itself, so that what was freed can be used
// again and the list stays short.
const (
	maxFreedRanges = 4096
	maxFreedBytes  = 1 << 30
)

func (f *freed) many() bool { return len(f.ranges) > maxFreedRanges || f.bytes > maxFreedBytes }

// freeEntryLocked notes that an entry does not refer to its clusters any more.
func (d *Disk) freeEntryLocked(e *entry, w why) {
	switch {
	case e.host == none || d.external:
	case e.compressed:
		first := d.down(e.host)
		d.maps.freed.add(first, d.up(e.host+e.length)-first, w)
	default:
		d.maps.freed.add(e.host, d.cluster, w)
	}
}

// free makes clusters free that have one reference in the refcounts and none anywhere else. What cannot be freed now is when it can,
// with what lost its last reference in a commit.
func (d *Disk) free(ctx context.Context, ranges []freeRange) {
	rest, _ := d.refs.release(ctx, ranges)
	d.freeLater(rest)
}

func (d *Disk) freeLater(ranges []freeRange) {
	d.maps.Lock()
	defer d.maps.Unlock()
	for _, f := range ranges {
		d.maps.freed.add(f.off, f.n, f.why)
	}
}

// reclaim makes clusters free whose references are durably gone and that no request can be using any more. Only under the lock
// of commits. What failed is tried again with the next commit.
func (d *Disk) reclaim(ctx context.Context) error {
	c := &d.commits
	for range 2 {
		if !c.waiting() {
			return nil
		}
		if len(c.aging) > 0 && !d.epochs.past() {
			return nil
		}
		last, rest, err := d.refs.lower(ctx, c.aging)
		c.aging = within(rest)
		for _, f := range last {
			if f.why == freedRequest && d.options.discardRequest || f.why == freedOther && d.options.discardOther {
				// Nobody reads there any more; what becomes of the request does not matter.
				_ = d.file.Discard(ctx, f.off, min(f.n, max(d.file.Size()-f.off, 0)))
			}
		}
		c.last = append(c.last, last...)
		if err == nil {
			rest, err = d.refs.release(ctx, c.last)
			c.last = within(rest)
		}
		if err != nil {
			return err
		}
		if !d.epochs.turn() {
			return nil
		}
		c.aging, c.unreferenced = c.unreferenced, nil
	}
	return nil
}

// waiting says whether something is to be freed.
func (c *commits) waiting() bool {
	return len(c.last) > 0 || len(c.aging) > 0 || len(c.unreferenced) > 0
}

// within bounds what waits because the refcounts cannot be read; what is more is leaked.
func within(ranges []freeRange) []freeRange { return ranges[:min(len(ranges), 4*maxFreedRanges)] }
