// SPDX-License-Identifier: Apache-2.0

package mirror

import (
	"fmt"
	"time"

	"github.com/blkmirror/blkmirror/job/digest"
)

// A mirror that tells a digest tells what both disks read as at the moment when it completes: guests are drained, nothing is dirty, all
// is flushed. It keeps the digest of each leaf of 1 MiB as it compares the disks, and forgets those that are written. When it is to
// complete it compares these leaves again, while guests go on, until so few are left that the rest can be done with guests drained.

// digestRest is how much is compared with guests drained at most. Tests change it.
var digestRest int64 = 16 << 20

const (
	// maxLeafMemory is how many bytes the digests of all leaves may take: enough for 8 TiB.
	maxLeafMemory = 256 << 20
	// If guests write faster than leaves can be compared, that is given up when it gained nothing for so long.
	chaseTime = 5 * time.Second
)

// Digest is what both disks read as when a job completed.
type Digest struct {
	Sum string // 64 hexadecimal digits; "" if it is not known
	Why string // why it is not
}

// checkDigest refuses a digest that cannot be.
func (o *Options) checkDigest() error {
	if !o.Verify {
		return invalid("Parameter 'x-verify-digest' needs 'x-verify'")
	}
	const most = maxLeafMemory / int64(len(digest.Hash{})) * digest.LeafSize
	if size := o.Source.Size(); size > most {
		return invalid("Parameter 'x-verify-digest' takes 32 bytes of memory for each MiB, and at most %d MiB in all: a disk of %d bytes is too long, one of %d is not",
			maxLeafMemory>>20, size, most)
	}
	return nil
}

// chase watches whether comparing stale leaves catches up with guests. It goes by rounds: as much is compared in each as was stale
// when it began.
type chase struct {
	from   int64     // stale bytes when the round began; 0 before the first
	done   int64     // bytes that were compared since
	misses int       // how often all that is stale was held by guests since
	least  int64     // stale bytes after the last round that gained something
	since  time.Time // when that was
}

// hopeless takes how much is stale, and says whether it will not get less.
func (c *chase) hopeless(now time.Time, stale int64) bool {
	switch {
	case c.from > 0 && c.done < c.from && time.Duration(c.misses)*verifyAgain < chaseTime:
		return false // the round goes on
	case c.from == 0 || stale < c.least/4*3:
		c.least, c.since = stale, now
	case now.Sub(c.since) >= chaseTime:
		return true
	}
	c.from, c.done, c.misses = stale, 0, 0
	return false
}

// seek has stale leaves compared if the job is to complete. It says whether so few are left that it can, as far as they matter.
func (l *loop) seek(completing bool) (ok bool) {
	m := l.m
	if !m.opts.Digest {
		return true
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	v := m.planner.verify
	if !v.begun() || !completing || m.planner.unverified() > l.verifyRestMost() {
		v.seeking, l.chase = false, chase{}
		return false
	}
	v.seeking = m.proof.digest.Why == ""
	stale := m.planner.staleBytes()
	if stale <= l.verifyRestMost() {
		return true
	}
	if !l.chase.hopeless(time.Now(), stale) {
		return false
	}
	v.seeking = false
	m.proof.digest.Why = fmt.Sprintf("guests write faster than the disks can be read again: %d bytes were behind when that was given up", stale)
	return true
}

// sumUp tells the digest of a job that has completed.
func (m *Mirror) sumUp() {
	if !m.opts.Digest {
		return
	}
	d := m.proof.digest
	if d.Why == "" {
		var t digest.Tree
		for _, leaf := range m.planner.verify.leaves { // nobody changes them any more
			t.Add(leaf)
		}
		d.Sum = t.Sum(m.planner.d.Size())
	}
	m.mu.Lock()
	m.proof.digest = d
	m.mu.Unlock()
	if m.opts.OnDigest != nil {
		m.opts.OnDigest(d)
	}
}
