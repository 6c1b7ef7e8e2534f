// SPDX-License-Identifier: Apache-2.0

package job

import (
	"slices"
	"testing"

	"github.com/blkmirror/blkmirror/block/budget"
)

const mib = 1 << 20

// take takes buffers of 1 MiB until there are no more, and says how large they are.
func take(m *Memory) (sizes []int64) {
	for {
		n := m.Take(mib)
		if n == 0 {
			return sizes
		}
		sizes = append(sizes, n)
	}
}

func sum(sizes []int64) (n int64) {
	for _, s := range sizes {
		n += s
	}
	return n
}

// One job takes half of what is shared, and its own part. Others get theirs, whatever it has, and in the end all have the same.
func TestMemoryIsShared(t *testing.T) {
	r := NewRegistry(nil)
	r.ShareMemory(budget.New(16 * mib))
	hog, late := r.OpenMemory(LeastBuffer), r.OpenMemory(LeastBuffer)
	first := take(hog)
	if n := sum(first); n < 7*mib || n > 8*mib+LeastBuffer {
		t.Errorf("one job has %d bytes: %v", n, first)
	}
	second := take(late)
	if n := sum(second); n < 3*mib || n > 5*mib {
		t.Errorf("the other one has %d bytes: %v", n, second)
	}
	for range 100 { // a piece of each ends, and it tries to begin others
		for _, j := range []struct {
			m    *Memory
			held *[]int64
		}{{hog, &first}, {late, &second}} {
			j.m.Give((*j.held)[0])
			*j.held = append((*j.held)[1:], take(j.m)...)
		}
	}
	if a, b := sum(first), sum(second); max(a, b)-min(a, b) > mib {
		t.Errorf("in the end one job has %d bytes and the other %d", a, b)
	}
	for _, n := range slices.Concat(first) {
		hog.Give(n)
	}
	for _, n := range second {
		late.Give(n)
	}
	hog.Close()
	late.Close()
	if u := r.memory.Use(); u.Held != 0 || u.Accounts != 0 {
		t.Errorf("in the end %+v", u)
	}
}

// However many there are, each gets its own part, and no more but for one, which may have one piece as long as nobody else has
// anything that is shared.
func TestMemoryOfEach(t *testing.T) {
	r := NewRegistry(nil)
	r.ShareMemory(budget.New(1))
	for i := range 10 {
		m := r.OpenMemory(LeastBuffer)
		if got := take(m); len(got) != 1 || i > 0 && got[0] != LeastBuffer {
			t.Errorf("a job among many has %v", got)
		}
	}
	if got := NewRegistry(nil).OpenMemory(1).Take(20 * mib); got != 32*mib {
		t.Errorf("without a bound there are %d bytes", got)
	}
	m := r.OpenMemory(2 * mib)
	n := m.Take(mib)
	if n = m.Keep(n, 5000); n != 8192 {
		t.Errorf("a piece of 5000 bytes keeps %d", n)
	}
	m.Give(n)
	m.Close()
}

func TestMemoryAllocatesNothing(t *testing.T) {
	r := NewRegistry(nil)
	r.ShareMemory(budget.New(8 * mib))
	m := r.OpenMemory(LeastBuffer)
	if n := testing.AllocsPerRun(100, func() { m.Give(m.Keep(m.Take(mib), 70000)) }); n > 0 {
		t.Errorf("%v allocations", n)
	}
}
