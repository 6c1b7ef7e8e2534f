// SPDX-License-Identifier: Apache-2.0

package mirror

import (
	"errors"
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/blocktest"
	"github.com/blkmirror/blkmirror/block/budget"
	"github.com/blkmirror/blkmirror/job"
	"github.com/blkmirror/blkmirror/job/digest/digesttest"
)

var (
	seedFlag      = flag.Uint64("seed", 0, "first seed of the schedules; 0 for one that nobody chose")
	schedulesFlag = flag.Int("schedules", someSchedules, "how many schedules to run")
)

// TestSchedules runs mirrors beside guests, operators, faults and other users of the graph, all at random and in virtual
// time, and judges what guests read, what the target holds and what became of the jobs. A seed that failed is run again
// with -seed N -schedules 1.
func TestSchedules(t *testing.T) {
	first := *seedFlag
	if first == 0 {
		first = uint64(time.Now().UnixNano()) & 0xffffffff
	}
	t.Logf("seeds from %d", first)
	var total tally
	for i := range *schedulesFlag {
		seed := first + uint64(i)
		ok := t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			in(t, func(t *testing.T) { newSchedule(t, seed, &total).run() })
		})
		if !ok {
			t.Fatalf("seed %d failed; run it again with -seed %d -schedules 1", seed, seed)
		}
	}
	t.Logf("%d schedules: %v", *schedulesFlag, &total)
}

// tally counts, so that one can see that the schedules reach what they are to test.
type tally struct {
	jobs, completed, soft, cancelled, failed, ready, audits, synced, requests, faults, quiet, durable, offloaded, silences, verified, digests, undigested, again atomic.Int64
	networked
}

func (c *tally) String() string {
	return fmt.Sprintf("%d jobs (%d ready, %d completed, %d left softly, %d cancelled, %d failed), %d requests, %d failed requests of jobs, "+
		"%d audits (%d in sync), %d quiet, %d durable, %d bytes offloaded, silent %d times, %d verified (%d times again), %d digests and %d missing, %v", c.jobs.Load(), c.ready.Load(), c.completed.Load(), c.soft.Load(), c.cancelled.Load(),
		c.failed.Load(), c.requests.Load(), c.faults.Load(), c.audits.Load(), c.synced.Load(), c.quiet.Load(), c.durable.Load(),
		c.offloaded.Load(), c.silences.Load(), c.verified.Load(), c.again.Load(), c.digests.Load(), c.undigested.Load(), &c.networked)
}

// schedule is one run.
type schedule struct {
	*rig
	t     *testing.T
	seed  uint64
	total *tally
	size  int64
	h     *history
	names int
	audit *rand.Rand

	guests  sync.WaitGroup
	door    sync.Mutex  // of guests, who come while stop is unset
	stop    atomic.Bool // guests end
	faulty  bool        // faults are injected
	swift   bool        // disks take no time
	lossy   bool
	loses   atomic.Pointer[disk] // loses what could not be flushed
	current atomic.Pointer[current]

	// The pivot, as seen when permissions change inside the last drained section.
	mu       sync.Mutex
	mirrored bool // the guest stands on a mirror
	pivots   int
	content  []byte // of the disks
	partial  bool   // the mirror does not copy everything
	wrong    error
	left     *disk // what guests use no more
	leftAt   int   // its changes then
}

func (s *schedule) rand(purpose uint64) *rand.Rand { return rand.New(rand.NewPCG(s.seed, purpose)) }

func one[T any](r *rand.Rand, of ...T) T { return of[r.IntN(len(of))] }

// longest is how long a guest's request may take where disks take no time: others may hold guests back for a moment, and the
// target may answer just in time and fall silent again before they are let go.
const longest = 2*patience + 100*time.Millisecond

func chance(r *rand.Rand, percent int) bool { return r.IntN(100) < percent }

func newSchedule(t *testing.T, seed uint64, total *tally) *schedule {
	s := &schedule{t: t, seed: seed, total: total}
	r := s.rand(1)
	s.audit = s.rand(2)
	s.size = (32<<10 + r.Int64N(224<<10)) &^ 511
	if chance(r, 10) {
		s.size = (512<<10 + r.Int64N(7<<20)) &^ 511
	}
	s.faulty = chance(r, 50)
	s.lossy = chance(r, 50)
	hushed := chance(r, 15) // nothing takes time but silences of the target
	s.faulty = s.faulty || hushed
	slow := one(r, 0, time.Millisecond, 5*time.Millisecond, 30*time.Millisecond)
	if s.size > 256<<10 {
		slow /= 8
	}
	diskOf := func(n uint64, content []byte) *disk {
		o := blocktest.MemOptions{Size: s.size, OnDiscard: one(r, blocktest.DiscardZeroes, blocktest.DiscardKeeps, blocktest.DiscardGarbage),
			NoZeroUnmap: chance(r, 25), NoZeroes: chance(r, 15), SlowZeroes: chance(r, 15), NoDiscard: chance(r, 15),
			NoStatus: chance(r, 10), StatusMost: one[int64](r, 0, 0, 0, 512, 4096, 70000)}
		o.Limits.RequestAlign = one[int64](r, 1, 1, 512, 4096)
		if s.size > 256<<10 {
			o.StatusMost *= 64
		}
		d := newDisk(seed*8+n, content, o)
		d.offloads = chance(r, 50)
		d.slow, d.cut = slow, one[int64](r, 0, 4096, 65536)
		if chance(r, 30) || hushed {
			d.slow = 0
		}
		return d
	}
	initial := content(r, s.size)
	source := diskOf(1, initial)
	if chance(r, 25) {
		source.mem = blocktest.NewMem(blocktest.MemOptions{Size: s.size})
		source.base = initial
		source.mu.own = s.someSectors(r)
		for i, own := range source.mu.own {
			if own {
				_ = source.mem.WriteAt(bg, initial[i*512:i*512+512], int64(i)*512, 0)
			}
		}
		_ = source.mem.Flush(bg)
	}
	var old []byte
	if chance(r, 40) {
		old = content(r, s.size)
	}
	target := diskOf(2, old)
	options := func() block.Options {
		return block.Options{Discard: chance(r, 70),
			DetectZeroes: one(r, block.DetectZeroesOff, block.DetectZeroesOff, block.DetectZeroesOn, block.DetectZeroesUnmap)}
	}
	s.swift = source.slow == 0 && target.slow == 0
	s.h = &history{initial: initial, scope: make([]bool, s.size)}
	for i, d := range []*disk{source, target} {
		if s.faulty && chance(r, 50) && !hushed || hushed && d == target {
			d.net = newNetwork(d, seed*8+uint64(i), one(r, 0, 5*time.Millisecond, time.Second, time.Hour), total)
			d.net.final = func() bool { return s.guest.Gate().Closed() }
		}
	}
	s.rig = newRig(t, source, target, options(), options())
	if chance(r, 50) {
		s.jobs.ShareMemory(budget.New(one[int64](r, 1, 64<<10, 1<<20, 4<<20)))
	}
	for _, d := range []*disk{source, target} {
		d.permissions = s.permissionsChanged
		d.keep = func() bool { return !s.lossy || s.loses.Load() != d || s.guest.Node().Driver() == d.driver() }
		d.lossy = true
	}
	return s
}

func (s *schedule) someSectors(r *rand.Rand) []bool {
	own := make([]bool, s.size/512)
	for i := 0; i < len(own); {
		run, is := 1+r.IntN(100), chance(r, 50)
		for ; run > 0 && i < len(own); i, run = i+1, run-1 {
			own[i] = is
		}
	}
	return own
}

// content is data with runs of zeroes between.
func content(r *rand.Rand, size int64) []byte {
	b := make([]byte, size)
	for at := int64(0); at < size; {
		n := min(size-at, 1+r.Int64N(one[int64](r, 700, 8<<10, 128<<10)))
		if chance(r, 50) {
			fill(b[at:at+n], 1<<40+r.Uint64N(1<<30)*8, at)
		}
		at += n
	}
	return b
}

// problem ends the schedule.
func (s *schedule) problem(format string, args ...any) {
	s.t.Errorf("seed %d: "+format, append([]any{s.seed}, args...)...)
}

// ---- Guests

// startGuest runs a guest for some requests; one that comes when all were told to end leaves at once.
func (s *schedule) startGuest(n int, r *rand.Rand, b *block.Backend, detach bool) {
	run := func() {
		think := one(r, 0, time.Millisecond, 10*time.Millisecond, 50*time.Millisecond)
		for i := 0; i < n && !s.stop.Load() && !s.t.Failed(); i++ {
			s.request(r, b)
			time.Sleep(time.Duration(r.Int64N(int64(think) + 1000)))
		}
		if detach {
			must(s.t, s.graph.Change(bg, func(tx *block.Tx) error {
				tx.Detach(b)
				return nil
			}))
		}
	}
	s.door.Lock()
	late := s.stop.Load()
	if !late {
		s.guests.Go(run)
	}
	s.door.Unlock()
	if late {
		run()
	}
}

func (s *schedule) stopGuests() {
	s.door.Lock()
	s.stop.Store(true)
	s.door.Unlock()
	s.guests.Wait()
}

// where picks a range of any alignment.
func (s *schedule) where(r *rand.Rand) (off, n int64) {
	most := min(s.size, one[int64](r, 1, 512, 4096, 4096, 70000, 300000, 3<<20))
	n = 1 + r.Int64N(most)
	off = r.Int64N(s.size - n + 1)
	if chance(r, 25) { // a hot spot
		off = min(off%20000, s.size-n)
	}
	if grain := one[int64](r, 1, 1, 512, 4096, 65536); grain > 1 {
		off &^= grain - 1
		n = min((n+grain-1)&^(grain-1), s.size-off)
	}
	return off, n
}

// atHome says whether the guests' own disk cannot be silent.
func (s *schedule) atHome() bool {
	driver := s.guest.Node().Driver()
	if f, ok := driver.(*filter); ok {
		driver = f.source.Node().Driver()
	}
	_, home := driver.(*disk)
	return home
}

func (s *schedule) request(r *rand.Rand, b *block.Backend) {
	s.total.requests.Add(1)
	if s.swift && s.atHome() {
		began := time.Now()
		defer func() {
			if took := time.Since(began); took > longest && s.atHome() {
				s.problem("a guest's request took %v", took)
			}
		}()
	}
	off, n := s.where(r)
	var flags block.Flags
	if chance(r, 15) {
		flags |= block.FUA
	}
	switch c := r.IntN(100); {
	case c < 20:
		p := make([]byte, n)
		began, resets := s.h.time()
		if b.ReadAt(bg, p, off) == nil {
			if err := s.h.check(p, off, began, resets); err != nil {
				s.problem("a guest's read of %d+%d: %v", off, n, err)
			}
		}
	case c < 60:
		w := s.h.begin(data, off, n)
		p := make([]byte, n)
		fill(p, w.id, off)
		s.h.end(w, b.WriteAt(bg, p, off, flags))
	case c < 80:
		if chance(r, 50) {
			flags |= block.MayUnmap
		}
		w := s.h.begin(zero, off, n)
		s.h.end(w, b.WriteZeroes(bg, off, n, flags))
	case c < 90:
		w := s.h.begin(trim, off, n)
		s.h.end(w, b.Discard(bg, off, n))
	default:
		s.flush(b)
	}
}

// current is the mirror that runs, for guests.
type current struct {
	m      *Mirror
	target *disk
	steady bool // in sync from the beginning to the end, once it is
}

// flush also looks whether what is in sync is durable on the target.
func (s *schedule) flush(b *block.Backend) {
	c := s.current.Load()
	began, resets := s.h.time()
	if c == nil || !c.steady || !c.m.State().Synced {
		_ = b.Flush(bg)
		return
	}
	if b.Flush(bg) != nil || !c.m.State().Synced || s.guest.Node() != c.m.node {
		return // the job is being cancelled, or over
	}
	durable := c.target.durable()
	if s.guest.Node() != c.m.node {
		return
	}
	s.total.durable.Add(1)
	if err := s.h.check(durable, 0, began, resets); err != nil {
		s.problem("the target is not durable after a guest's flush: %v", err)
	}
}

// ---- The run

func (s *schedule) run() {
	r := s.rand(3)
	n := r.IntN(4)
	for i := range n {
		b := s.guest
		if i > 0 {
			b = s.attach(fmt.Sprintf("guest%d", i))
		}
		s.startGuest(10+r.IntN(60), s.rand(100+uint64(i)), b, i > 0 && chance(r, 50))
	}
	for i := range 1 + r.IntN(3) {
		if s.t.Failed() {
			break
		}
		s.mirror(r, i, n == 0)
	}
	s.stopGuests()
	s.source.heal()
	s.target.heal()
	s.mend(true)
	p := make([]byte, s.size)
	began, resets := s.h.time()
	must(s.t, s.guest.ReadAt(bg, p, 0))
	if err := s.h.check(p, 0, began, resets); err != nil {
		s.problem("the disk at the end: %v", err)
	}
	s.checkLeft()
}

func (s *schedule) attach(name string) *block.Backend {
	var b *block.Backend
	must(s.t, s.graph.Change(bg, func(tx *block.Tx) (err error) {
		b, err = tx.Attach(s.guest.Node(), name, block.PermConsistentRead|block.PermWrite, block.PermAll)
		return err
	}))
	return b
}

// mend brings back servers that are gone. They are done with what was given up in their sessions, or in old ones as well.
func (s *schedule) mend(all bool) {
	for _, d := range []*disk{s.source, s.target} {
		if d.net != nil {
			d.net.mend(all)
		}
	}
}

// checkLeft says whether a disk that guests left for the target was changed since.
func (s *schedule) checkLeft() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.left != nil && s.left.changes() != s.leftAt {
		s.problem("the old source was written after the pivot")
	}
	s.left = nil
}

// mirror runs one mirror from the disk that guests use to the other one.
func (s *schedule) mirror(r *rand.Rand, number int, alone bool) {
	s.checkLeft()
	s.total.jobs.Add(1)
	if s.guest.Node() == s.tn {
		s.sn, s.tn, s.source, s.target = s.tn, s.sn, s.target, s.source
	}
	o := Options{JobID: fmt.Sprintf("m%d", number), Source: s.sn, Target: s.tn,
		Sync: one(r, SyncFull, SyncFull, SyncFull, SyncTop, SyncNone), Mode: one(r, Background, WriteBlocking),
		Granularity: one[int64](r, 0, 512, 1024, 4096, 4096, 65536, 65536, 1<<20, 64<<20), BufSize: one[int64](r, 0, 0, 1, 65536, 1<<20),
		OnSourceError: one(r, job.PolicyReport, job.PolicyIgnore, job.PolicyStop, job.PolicyENOSPC),
		OnTargetError: one(r, job.PolicyReport, job.PolicyIgnore, job.PolicyStop, job.PolicyENOSPC),
		AutoFinalize:  chance(r, 70), AutoDismiss: chance(r, 70)}
	o.Auto = chance(r, 10)
	o.MaxGuestLatency = one(r, 0, 0, time.Microsecond, time.Millisecond, 20*time.Millisecond)
	if chance(r, 12) {
		o.Sync, o.Bitmap = SyncBitmap, s.bitmap(r)
	}
	if s.size > 256<<10 {
		o.BufSize = max(o.BufSize, 65536) // or it takes too long, even in virtual time
	}
	if chance(r, 25) {
		o.Speed = 1 + r.Int64N(s.size*4)
	}
	if chance(r, 10) {
		o.FilterName = "top"
	}
	s.target.heal()
	s.loses.Store(s.target)
	o.TargetIsZero = chance(r, 50) && block.IsZero(s.target.Bytes())
	s.mend(o.TargetIsZero || chance(r, 50))
	o.TargetIsZero = o.TargetIsZero && block.IsZero(s.target.Bytes())
	o.Offload = one(r, OffloadAuto, OffloadAuto, OffloadRange, OffloadOff)
	o.Verify = o.Sync == SyncFull && chance(r, 50)
	o.OnDifference = func(d Difference) { s.problem("a difference that is none: %+v; %+v", d, o) }
	o.OnVerified = func(int64) { s.total.verified.Add(1) }
	var told []Digest
	if o.Digest = o.Verify && chance(r, 60); o.Digest {
		digestRest = one[int64](r, 0, mib, 16*mib) // leaves may wait for guests
		o.OnDigest = func(d Digest) { told = append(told, d) }
	}
	s.setScope(&o)
	s.mu.Lock()
	s.partial = o.Sync != SyncFull
	s.mu.Unlock()
	m, err := Start(bg, s.graph, s.jobs, o, nil)
	if err != nil {
		s.problem("starting %+v: %v", o, err)
		return
	}
	s.h.mu.Lock()
	s.h.from = s.h.now()
	s.h.mu.Unlock()
	a := &actors{schedule: s, m: m, o: o, done: make(chan struct{})}
	verbs := chance(r, 60)
	s.current.Store(&current{m, s.target, !verbs && !s.faulty && o.Mode == WriteBlocking && o.Sync == SyncFull && s.target.base == nil})
	a.start(r, alone, verbs)
	a.finish(r)
	s.total.offloaded.Add(m.State().Bytes.Offloaded)
	m.mu.Lock()
	s.total.silences.Add(int64(m.planner.epoch))
	m.mu.Unlock()
	s.current.Store(nil)
	close(a.done)
	a.wait.Wait()
	a.judge()
	a.judgeDigest(told)
}

// bitmap lets guests write for a while beside a bitmap of the source.
func (s *schedule) bitmap(r *rand.Rand) (b *block.DirtyBitmap) {
	s.names++
	name := fmt.Sprintf("b%d", s.names)
	must(s.t, s.graph.Change(bg, func(tx *block.Tx) (err error) {
		b, err = tx.AddBitmap(s.sn, block.BitmapConfig{Name: name, Granularity: one[int64](r, 512, 4096, 65536)})
		return err
	}))
	time.Sleep(time.Duration(r.Int64N(int64(200 * time.Millisecond))))
	return b
}

// setScope says which bytes the target must have at the end.
func (s *schedule) setScope(o *Options) {
	g := o.Granularity
	if g == 0 {
		g = defaultGranularity(s.tn)
	}
	g = min(g, maxChunk)
	s.h.mu.Lock()
	defer s.h.mu.Unlock()
	clear(s.h.scope)
	s.h.from = math.MaxInt64
	s.source.mu.Lock()
	defer s.source.mu.Unlock()
	switch {
	case o.Sync == SyncNone:
	case o.Sync == SyncBitmap:
		set := o.Bitmap.Snapshot()
		for at := range s.size {
			s.h.scope[at] = set.Test(at / set.Granularity())
		}
	case o.Sync == SyncTop && s.source.base != nil:
		for i, own := range s.source.mu.own {
			if own {
				first := int64(i) * 512 / g * g
				for at := first; at < min(first+g, s.size); at++ {
					s.h.scope[at] = true
				}
			}
		}
	default:
		for i := range s.h.scope {
			s.h.scope[i] = true
		}
	}
}

// differs finds a byte in scope that the target does not have as the source does. The history is locked.
func (s *schedule) differs(a, b []byte) int64 {
	for at := 0; at < len(a); at += 512 {
		if string(a[at:at+512]) != string(b[at:at+512]) {
			for i := at; i < at+512; i++ {
				if a[i] != b[i] && s.h.scope[i] {
					return int64(i)
				}
			}
		}
	}
	return -1
}

// permissionsChanged is called inside changes of the graph. The change that takes the guest off a mirror is where the target
// has to be right.
func (s *schedule) permissionsChanged() {
	if s.guest == nil {
		return
	}
	s.h.mu.Lock()
	defer s.h.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.guest.Node().DriverName() == "mirror_top"
	if s.mirrored && !now {
		s.pivots++
		s.wrong = nil
		s.content = s.source.Bytes()
		if net := s.target.net; net != nil {
			net.settle(0, s.size)
		}
		a, b := s.source.Bytes(), s.target.Bytes()
		if at := s.differs(a, b); at >= 0 {
			s.wrong = fmt.Errorf("target differs from source at byte %d", at)
		} else if at := s.differs(b, s.target.durable()); at >= 0 {
			s.wrong = fmt.Errorf("target is not durable at byte %d", at)
		}
		if s.guest.Node() == s.tn {
			s.left, s.leftAt = s.source, s.source.changes()
			if s.partial {
				s.h.reset(b)
			}
		}
	}
	s.mirrored = now
}

// ---- Those who act beside a mirror

type actors struct {
	*schedule
	m    *Mirror
	o    Options
	done chan struct{}
	wait sync.WaitGroup
	calm atomic.Bool // nobody acts

	asked struct {
		sync.Mutex
		full, soft, force bool
	}
}

// during runs f again and again until the job is over.
func (a *actors) during(r *rand.Rand, most time.Duration, f func()) {
	a.wait.Go(func() {
		for !a.schedule.t.Failed() {
			select {
			case <-a.done:
				return
			case <-time.After(time.Duration(r.Int64N(int64(most)))):
				if !a.calm.Load() {
					f()
				}
			}
		}
	})
}

func (a *actors) start(r *rand.Rand, alone, verbs bool) {
	s := a.schedule
	seed := r.Uint64()
	rnd := func(n uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, n)) }
	auditor := &auditor{actors: a}
	a.during(rnd(1), one[time.Duration](r, 3, 20, 100)*time.Millisecond, auditor.look)
	if verbs {
		r := rnd(2)
		a.during(r, one[time.Duration](r, 10, 100, 400)*time.Millisecond, func() { a.verb(r) })
	}
	if s.faulty {
		faults := rnd(3)
		n := 1 + r.IntN(6)
		if s.source.net != nil || s.target.net != nil {
			n *= 2
		}
		a.during(faults, one[time.Duration](r, 10, 100)*time.Millisecond, func() {
			if n--; n >= 0 {
				a.fault(faults)
			}
		})
	}
	if chance(r, 30) {
		drains := rnd(4)
		a.during(drains, 200*time.Millisecond, func() {
			_ = s.graph.Change(bg, func(tx *block.Tx) error {
				err := tx.Drain(bg, nil, one(drains, s.guest.Node(), s.sn, s.tn))
				time.Sleep(time.Duration(drains.Int64N(int64(30 * time.Millisecond))))
				if chance(drains, 20) {
					return errors.New("changed my mind")
				}
				return err
			})
		})
	}
	if chance(r, 30) && !alone {
		late := rnd(5)
		n := 0
		a.during(late, 100*time.Millisecond, func() {
			if n++; n < 4 && !s.stop.Load() {
				s.startGuest(1+late.IntN(10), rnd(100+uint64(n)), s.attach(fmt.Sprintf("late%d", late.Uint32())), true)
			}
		})
	}
}

func (a *actors) verb(r *rand.Rand) {
	j := a.m.job
	var after job.After
	if chance(r, 30) {
		delay := time.Duration(r.Int64N(int64(10 * time.Millisecond)))
		after = func(f func()) {
			a.wait.Go(func() {
				time.Sleep(delay)
				f()
			})
		}
	}
	a.asked.Lock()
	defer a.asked.Unlock()
	switch r.IntN(24) {
	case 0, 1, 2:
		_ = j.Pause(after)
	case 3, 4, 5, 6:
		_ = j.Resume(after)
	case 7, 8:
		_ = j.SetSpeed(one(r, 0, 1+r.Int64N(a.size*10)))
	case 9, 10, 11, 12:
		if j.AllowChange() == nil {
			a.m.ChangeMode(one(r, Background, WriteBlocking), chance(r, 20))
		}
	case 13, 14:
		a.asked.full = j.Complete(after) == nil || a.asked.full
	case 15:
		a.softCancel(after)
	case 16:
		if chance(r, 30) {
			a.asked.force = j.Cancel(after) == nil || a.asked.force
		}
	case 17, 18:
		_ = j.Finalize(after)
	case 19:
		if chance(r, 10) {
			a.asked.force = j.SoftCancel(true, after) == nil || a.asked.force
		}
	case 20, 21:
		_ = j.Dismiss()
	case 22, 23:
		if a.m.Verify() == nil {
			a.total.again.Add(1)
		}
	}
}

// softCancel also notes when it was a forced one, because the job was not ready. asked is locked.
func (a *actors) softCancel(after job.After) {
	before := a.m.job.Info().Status
	if a.m.job.SoftCancel(false, after) == nil {
		a.asked.soft = true
		if before != job.Ready && before != job.Standby || after != nil || a.m.job.Info().Status == job.Pending {
			a.asked.force = true
		}
	}
}

func (a *actors) fault(r *rand.Rand) {
	f := fault{errno: one(r, syscall.EIO, syscall.EIO, syscall.ENOSPC), after: r.IntN(6), times: one(r, 1, 1, 2, 20), late: chance(r, 30)}
	d := a.source
	if chance(r, 65) {
		d = a.target
	}
	if d.net != nil && chance(r, 70) {
		a.interrupt(r, d)
		return
	}
	if d == a.target {
		f.op = one(r, block.OpWrite, block.OpWrite, block.OpZero, block.OpFlush)
	} else {
		f.op = one(r, block.OpWrite, block.OpZero, block.OpRead, block.OpRead, block.OpFlush)
	}
	d.addFault(f)
}

// interrupt cuts the connection to a disk for a while, the target's perhaps for good, or silences its server.
func (a *actors) interrupt(r *rand.Rand, d *disk) {
	n := d.net
	if chance(r, 60) { // requests gather before the connection dies
		a.total.stalls.Add(1)
		n.stall()
		time.Sleep(time.Duration(r.Int64N(int64(one(r, 5*time.Millisecond, 300*time.Millisecond, 5*time.Second, 30*time.Second)))))
		if chance(r, 50) {
			n.unstall()
			return
		}
	}
	a.total.disconnects.Add(1)
	dead := d == a.target && chance(r, 10)
	n.disconnect(dead)
	n.unstall()
	if dead {
		a.total.gone.Add(1)
		return
	}
	time.Sleep(time.Duration(r.Int64N(int64(one(r, 1, time.Millisecond, 50*time.Millisecond, 3*time.Second)))))
	restarted := chance(r, 40)
	if restarted {
		a.total.restarts.Add(1)
	}
	n.reconnect(restarted)
}

// connection says whether there is one to a disk, whether there will be none any more, and which it is.
func connection(d *disk) (up, dead bool, epoch int) {
	if d.net == nil {
		return true, false, 0
	}
	return d.net.state()
}

// abandon cancels a job whose target is gone for good. Nothing may wait for that.
func (a *actors) abandon() {
	j := a.m.job
	a.asked.Lock()
	a.asked.force = j.Cancel(nil) == nil || a.asked.force
	a.asked.Unlock()
	select {
	case <-j.Done():
	case <-time.After(time.Minute):
		a.problem("cancelled by force, a job waits for a target that is gone: %+v", j.Info())
		a.target.net.mend(true)
	}
}

// finish lets things go on for a while, and then brings the job to its end. A job that does not come to it is stuck.
func (a *actors) finish(r *rand.Rand) {
	j := a.m.job
	select {
	case <-j.Done():
	case <-time.After(time.Duration(r.Int64N(int64(time.Second)))):
	}
	quiet := chance(r, 30)
	ending := r.IntN(10)
	for turn := 0; ; turn++ {
		select {
		case <-j.Done():
			a.asked.Lock()
			_ = j.Dismiss()
			a.asked.Unlock()
			return
		case <-time.After(time.Duration(1 + r.Int64N(int64(100*time.Millisecond)))):
		}
		if a.schedule.t.Failed() {
			turn = max(turn, 10001) // it is not stuck, it just has to end
		}
		a.source.heal()
		a.target.heal()
		if _, dead, _ := connection(a.target); dead {
			a.abandon()
			continue
		}
		_ = j.SetSpeed(0)
		if turn > 10000 {
			_ = j.Cancel(nil)
			_ = j.Resume(nil)
			<-j.Done()
			return
		}
		if turn == 10000 {
			i := j.Info()
			a.problem("stuck: %+v %+v %s", i, a.m.State(), a.events.of(j.ID()))
			continue
		}
		if turn > 100 { // the operator who acts at random is in the way
			_ = j.Resume(nil)
		}
		switch s := j.Info().Status; {
		case s == job.Paused:
			_ = j.Resume(nil)
		case s == job.Standby:
			_ = j.Resume(nil)
		case s == job.Pending:
			_ = j.Finalize(nil)
		case s == job.Ready && quiet:
			quiet = !a.isQuiet(r)
		case s == job.Ready || s == job.Running && ending == 9:
			a.asked.Lock()
			switch {
			case ending < 6:
				a.asked.full = j.Complete(nil) == nil || a.asked.full
			case ending < 8:
				a.softCancel(nil)
			default:
				a.asked.force = j.Cancel(nil) == nil || a.asked.force
			}
			a.asked.Unlock()
		}
	}
}

// isQuiet looks at a ready job that nobody disturbs: it must come to rest. It says whether it could look.
func (a *actors) isQuiet(r *rand.Rand) bool {
	a.stopGuests()
	a.calm.Store(true)
	defer a.calm.Store(false)
	time.Sleep(40 * time.Second) // who acts already comes to an end: a server is stalled for 30 s at most, and then lost
	if _, dead, _ := connection(a.target); dead {
		return true
	}
	a.source.heal()
	a.target.heal()
	j := a.m.job
	for range 200 { // small pieces of a large disk take their time
		time.Sleep(6 * time.Second)
		if a.m.State().Dirty == 0 {
			break
		}
	}
	time.Sleep(6 * time.Second)
	a.asked.Lock()
	defer a.asked.Unlock()
	if a.asked.full || a.asked.soft || a.asked.force || a.m.job.Info().Status != job.Ready {
		return false
	}
	a.total.quiet.Add(1)
	i, s := j.Info(), a.m.State()
	if s.Dirty != 0 || i.Current != i.Total || s.Synced != (s.Mode == WriteBlocking) {
		a.problem("at rest: %+v %+v", i, s)
	}
	if at := differAt(a.source.Bytes(), a.target.Bytes()); at >= 0 && a.o.Sync == SyncFull && a.m.planner.suspects == nil {
		a.problem("at rest: target differs at %d", at)
	}
	return true
}

// judge looks at a job that is over.
func (a *actors) judge() {
	synctest.Wait()
	history := a.events.of(a.m.job.ID())
	if bad := illegal(history); bad != "" || !strings.HasSuffix(history, "concluded null") {
		a.problem("the life of the job: %s: %s", history, bad)
	}
	if strings.Contains(history, "READY") {
		a.total.ready.Add(1)
	}
	err := a.m.job.Err()
	a.mu.Lock()
	wrong, mirrored := a.wrong, a.mirrored
	a.mu.Unlock()
	switch {
	case mirrored:
		a.problem("the filter is still there")
	case err == nil && wrong != nil:
		a.problem("%v; %+v %s", wrong, a.o, history)
	case err == nil && a.m.State().Proof.Left > 0:
		a.problem("the job ended well, but was not verified: %+v; %+v %s", a.m.State().Proof, a.o, history)
	case err == nil && !a.asked.full && !a.asked.soft:
		a.problem("the job ended by itself: %s", history)
	case err == nil && a.guest.Node() == a.tn:
		a.total.completed.Add(1)
		if !a.asked.full {
			a.problem("guests were given the target, which nobody asked for: %s", history)
		}
	case err == nil:
		a.total.soft.Add(1)
		if !a.asked.soft {
			a.problem("guests were not given the target: %s", history)
		}
	case errors.Is(err, job.ErrCancelled):
		a.total.cancelled.Add(1)
		if !a.asked.force {
			a.problem("cancelled by nobody: %s", history)
		}
	default:
		a.total.failed.Add(1)
		if !a.faulty {
			a.problem("the job failed: %v; %s", err, history)
		}
	}
	if err != nil && a.guest.Node() != a.sn {
		a.problem("the job ended with %v, but the guest uses '%s'", err, a.guest.Node().Name())
	}
	a.total.faults.Add(int64(a.events.failures()))
}

// judgeDigest says whether the digest of a job that ended well is that of both disks at that moment.
func (a *actors) judgeDigest(told []Digest) {
	ok := a.m.job.Err() == nil && a.o.Digest
	switch {
	case ok && len(told) != 1, !ok && len(told) > 0:
		a.problem("%d digests were told: %+v; %+v", len(told), told, a.o)
	case ok && told[0] != a.m.State().Proof.Digest:
		a.problem("digest %+v was told, and %+v is shown", told[0], a.m.State().Proof.Digest)
	case ok && told[0].Sum == "" && told[0].Why != "":
		a.total.undigested.Add(1)
	case ok:
		a.total.digests.Add(1)
		if want := digesttest.Plain(a.content); told[0].Sum != want || told[0].Why != "" {
			a.problem("the digest is %+v, and should be %s; %+v", told[0], want, a.o)
		}
	}
}

// ---- The auditor

// auditor holds the state of the planner against the disks: I1 and I2.
type auditor struct {
	*actors
	current int64
	looks   int
}

func (a *auditor) look() {
	i := a.m.job.Info()
	if i.Current < a.current {
		a.problem("progress fell from %d to %d", a.current, i.Current)
	}
	a.current = i.Current
	if a.looks++; a.looks > 60 { // a long job
		time.Sleep(time.Duration(a.looks) * 10 * time.Millisecond)
	}
	// Nobody begins a request while the history is locked, and no claim comes or goes while the planner is.
	a.h.mu.Lock()
	defer a.h.mu.Unlock()
	m := a.m
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.planner.stopped || a.guest.Node() != m.node || len(m.flushing) > 0 {
		return
	}
	up, _, epoch := connection(a.target)
	if !up {
		return
	}
	p := m.planner
	g := p.d.Granularity()
	chunks := p.d.All().End
	busy := a.h.underWay(g, chunks)
	for _, o := range p.claims {
		for c := o.off / g; c*g < o.end; c++ {
			busy[c] = true
		}
	}
	var late []*exchange
	if a.target.net != nil {
		late = a.target.net.pending()
	}
	source, target, durable := a.source.Bytes(), a.target.Bytes(), a.target.durable()
	if _, _, now := connection(a.target); a.guest.Node() != m.node || now != epoch {
		return
	}
	a.total.audits.Add(1)
	suspect := func(c int64) bool { return p.suspects != nil && p.suspects.Test(c) }
	for _, x := range late {
		for c := x.call.Off / g; c < chunks && c*g < x.call.Off+x.call.Len; c++ { // padding may go beyond the end
			if !busy[c] && !p.dirty(c) && !suspect(c) {
				a.problem("I9: %v may still be carried out, but nobody suspects chunk %d; %+v", x.call, c, a.o)
				return
			}
		}
	}
	synced := p.synced()
	if synced {
		a.total.synced.Add(1)
	}
	for c := range chunks {
		off, end := c*g, min(c*g+g, a.size)
		if busy[c] || suspect(c) {
			continue
		}
		if !p.dirty(c) && !p.unflushed(off, end-off) && string(target[off:end]) != string(durable[off:end]) {
			a.problem("I8: chunk %d counts as flushed, but it is not durable; %+v", c, a.o)
			return
		}
		if p.z.Test(c) && !block.IsZero(target[off:end]) {
			a.problem("I2: chunk %d is said to be zero on the target; dirty %v", c, p.dirty(c))
			return
		}
		if !p.dirty(c) && string(source[off:end]) != string(target[off:end]) {
			for at := off; at < end; at++ {
				if source[at] != target[at] && a.h.scope[at] {
					a.problem("I1: chunk %d is clean, but the target differs at byte %d: %#x, not %#x; %+v", c, at, target[at], source[at], a.o)
					return
				}
			}
		}
	}
	if used := p.d.Len(); used < 0 || synced && used != 0 {
		a.problem("%d chunks dirty, synced %v", used, synced)
	}
}
