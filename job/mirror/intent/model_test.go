// SPDX-License-Identifier: Apache-2.0

package intent

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/blkmirror/blkmirror/block/bitmap"
)

const regions = 2*perRecord + 100

var testDisks = [2]Identity{{Device: 1, Inode: 2, Size: regions * minRegion}, {Name: [32]byte{7}, Size: regions * minRegion}}

func testConfig(d Durability, unflushed bool) Config {
	return Config{Size: regions * minRegion, Granularity: 64 << 10, Durability: d, Boot: [16]byte{9}, Source: testDisks[0],
		Target: testDisks[1], Unflushed: unflushed, Hot: 8}
}

// model is what a mirror would know, region by region.
type model struct {
	random   *rand.Rand
	disk     *disk
	log      *Log
	dirty    map[int64]bool
	writing  map[int64]int
	unsynced map[int64]bool // written and not flushed since
	flushing map[int64]bool // the part of it that a flush under way does not cover
	scanned  bool
}

// needed says whether a crash may not miss a region; host is whether the host crashes, too.
func (m *model) needed(r int64, host bool) bool {
	return !m.scanned || m.dirty[r] || m.writing[r] > 0 || (host || m.log.config.Unflushed) && m.unsynced[r]
}

// check holds what a crash would leave against what is known.
func (m *model) check() error {
	c := m.log.config
	verify := func(how string, image []byte, boot [16]byte) error {
		found := Load("log", reader(image), Expect{Boot: boot, Source: c.Source, Target: c.Target})
		if found.Phase == Pivoted || found.Phase == Ended {
			return fmt.Errorf("%s: phase %s", how, found.Phase)
		}
		if found.Dirty == nil {
			return nil
		}
		if !m.scanned {
			return fmt.Errorf("%s: not all is dirty", how)
		}
		for r := range int64(regions) {
			if m.needed(r, c.Durability == Host) && !found.Dirty.Test(r) {
				return fmt.Errorf("%s: region %d is missed (dirty %v, %d writes, unsynced %v)", how, r, m.dirty[r], m.writing[r],
					m.unsynced[r])
			}
		}
		return nil
	}
	if err := verify("after a kill", m.disk.afterKill(), c.Boot); err != nil {
		return err
	}
	return verify("after a loss of power", m.disk.afterPowerLoss(m.random), [16]byte{1})
}

func (m *model) clean(off, n int64) bool {
	r := off / minRegion
	return !m.dirty[r]
}

// region picks few regions often, and those at the ends of records.
func (m *model) region() int64 {
	switch m.random.IntN(3) {
	case 0:
		return m.random.Int64N(regions)
	case 1:
		return perRecord - 2 + m.random.Int64N(4)
	}
	return 4000 + m.random.Int64N(24)
}

func (m *model) step() error {
	r := m.region()
	n := min(1+m.random.Int64N(2), regions-r)
	off, length := r*minRegion+5, n*minRegion-10
	switch m.random.IntN(12) {
	case 0, 1, 2:
		for !m.log.Begin(off, length) {
			if m.log.Mark(off, length) != nil {
				return nil // the guest waits
			}
		}
		for i := r; i < r+n; i++ {
			m.writing[i]++
			m.unsynced[i] = true
		}
	case 3, 4, 5:
		for i := range m.writing {
			r = min(i, r) // any one; which one matters little
		}
		if m.writing[r] == 0 {
			return nil
		}
		m.dirty[r] = m.random.IntN(2) == 0
		m.writing[r]--
		if m.writing[r] == 0 {
			delete(m.writing, r)
		}
		m.unsynced[r] = true
		if m.flushing != nil {
			m.flushing[r] = true
		}
		m.log.Done(r*minRegion+7, 1)
	case 6, 7:
		if !m.dirty[r] || !m.scanned {
			return nil
		}
		for !m.log.BeginCopy(r*minRegion, minRegion) {
			if m.log.Mark(r*minRegion, minRegion) != nil {
				return nil
			}
		}
		m.unsynced[r] = true
		if m.flushing != nil {
			m.flushing[r] = true
		}
		delete(m.dirty, r)
		m.log.DoneCopy(r*minRegion, minRegion)
	case 8:
		return m.flush()
	case 9:
		_ = m.log.Retire(m.clean, m.random.IntN(5) == 0)
	case 10:
		if !m.scanned && m.random.IntN(4) == 0 {
			m.scanned = true
		}
		if m.scanned {
			_ = m.log.Known(m.clean)
		}
	case 11:
		_ = m.log.SetPhase(Ready)
		m.log.Trouble()
	}
	return nil
}

// flush flushes both disks; in between other steps run.
func (m *model) flush() error {
	if m.flushing != nil {
		return nil
	}
	m.flushing = map[int64]bool{}
	tick := m.log.BeginFlush()
	for range m.random.IntN(4) {
		if err := m.step(); err != nil {
			return err
		}
	}
	if m.random.IntN(4) > 0 {
		for r := range m.unsynced {
			if !m.flushing[r] && m.writing[r] == 0 {
				delete(m.unsynced, r)
			}
		}
		m.log.Flushed(tick)
	}
	m.flushing = nil
	return nil
}

// A crash at any step of any history misses nothing.
func TestCrashAnywhere(t *testing.T) {
	base := rand.Uint64()
	t.Logf("seed %d", base)
	for seed := base; seed < base+60; seed++ {
		random := rand.New(rand.NewPCG(seed, 1))
		durability := []Durability{Process, Host}[random.IntN(2)]
		m := &model{random: random, disk: &disk{random: random}, dirty: map[int64]bool{}, writing: map[int64]int{},
			unsynced: map[int64]bool{}}
		log, err := Create("log", m.disk, testConfig(durability, random.IntN(2) == 0), Scanning, nil)
		if err != nil {
			t.Fatal(err)
		}
		m.log = log
		for range random.IntN(10) {
			m.dirty[m.region()] = true
		}
		if random.IntN(2) == 0 {
			m.disk.broken = func(bool) bool { return random.IntN(15) == 0 }
		}
		m.disk.looked = func() {
			if random.IntN(10) == 0 { // somebody takes regions back meanwhile, and waits to write that
				m.log.mu.Lock()
				for _, of := range []*list{&m.log.mu.hot.copied, &m.log.mu.hot.written} {
					for range of.length {
						m.log.retireLocked(of, 0, m.clean)
					}
				}
				m.log.mu.Unlock()
			}
			if random.IntN(10) == 0 && !t.Failed() {
				if err := m.check(); err != nil {
					t.Errorf("seed %d: within a step %v", seed, err)
				}
			}
		}
		for i := range 400 {
			if err := m.step(); err != nil {
				t.Fatalf("seed %d, step %d: %v", seed, i, err)
			}
			if random.IntN(8) == 0 {
				if err := m.check(); err != nil {
					t.Fatalf("seed %d, step %d: %v", seed, i, err)
				}
			}
			if t.Failed() {
				return
			}
		}
	}
}

// Without trouble the file does not say more than it has to: dirty regions and the hot ones.
func TestBound(t *testing.T) {
	for _, durability := range []Durability{Process, Host} {
		d := &disk{random: rand.New(rand.NewPCG(1, 1))}
		none, _ := bitmap.New(regions*minRegion, minRegion)
		l, err := Create("log", d, testConfig(durability, false), Copying, none)
		if err != nil {
			t.Fatal(err)
		}
		dirty := map[int64]bool{}
		for r := int64(0); r < regions; r += 3 {
			off := r * minRegion
			if l.Begin(off, 1) {
				t.Fatal("it was marked")
			}
			if err := l.Mark(off, 1); err != nil || !l.Begin(off, 1) {
				t.Fatal(err)
			}
			dirty[r] = r%100 == 0
			l.Done(off, 1)
			if r%30 == 0 {
				l.Flushed(l.BeginFlush())
				if err := l.Retire(func(off, _ int64) bool { return !dirty[off/minRegion] }, false); err != nil {
					t.Fatal(err)
				}
				if l.Full() {
					t.Fatal("too many regions are hot")
				}
			}
		}
		found := Load("log", d, Expect{l.config.Boot, testDisks[0], testDisks[1]})
		if found.Phase != Copying || len(found.Whys) > 0 {
			t.Fatalf("%+v", found)
		}
		var must int64
		for r := range int64(regions) {
			if dirty[r] {
				must++
				if !found.Dirty.Test(r) {
					t.Errorf("region %d is missed", r)
				}
			}
		}
		if n := found.Dirty.Len(); n < must || n > must+18 {
			t.Errorf("%s: %d regions are marked, %d of them have to be", durability, n, must)
		}
		if !found.Dirty.Test(regions - regions%3) {
			t.Error("the last one written is not among them")
		}
	}
}

// Writers at once, with regions taken back under them.
func TestAtOnce(t *testing.T) {
	d := &disk{random: rand.New(rand.NewPCG(1, 1))}
	none, _ := bitmap.New(regions*minRegion, minRegion)
	l, err := Create("log", d, testConfig(Process, false), Copying, none)
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	writing := map[int64]int{}
	var writers sync.WaitGroup
	for w := range 4 {
		writers.Go(func() {
			random := rand.New(rand.NewPCG(uint64(w), 2))
			for range 500 {
				r := random.Int64N(200)
				off := r * minRegion
				for !l.Begin(off, 1) {
					if err := l.Mark(off, 1); err != nil {
						t.Error(err)
						return
					}
				}
				mu.Lock()
				writing[r]++
				mu.Unlock()
				if random.IntN(8) == 0 {
					if err := l.Retire(func(int64, int64) bool { return true }, false); err != nil {
						t.Error(err)
					}
				}
				mu.Lock()
				writing[r]--
				mu.Unlock()
				l.Done(off, 1)
			}
		})
	}
	done := make(chan struct{})
	go func() { writers.Wait(); close(done) }()
	for running := true; running; {
		select {
		case <-done:
			running = false
		default:
		}
		mu.Lock()
		found := Load("log", reader(d.afterKill()), Expect{l.config.Boot, testDisks[0], testDisks[1]})
		for r, n := range writing {
			if n > 0 && !found.Dirty.Test(r) {
				t.Errorf("region %d is being written and not marked", r)
			}
		}
		mu.Unlock()
		if t.Failed() {
			break
		}
	}
	<-done
}
